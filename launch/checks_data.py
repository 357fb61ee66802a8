"""What the training data would do to a run: each check yields Problems."""

from __future__ import annotations

from collections.abc import Iterator

from launch.columns import SCORES
from launch.plan import LaunchPlan
from launch.problems import Problem, error, warning


def data(plan: LaunchPlan) -> Iterator[Problem]:
    """Each file's own problems: bad lines, few negatives, scores in [0, 1], several positives."""
    need = int(plan.number("train_group_size", 1)) - 1
    for file in plan.data.files:
        yield from file.problems
        if file.thin:
            reason = (
                f"{file.path}: {file.thin} of {file.rows} rows have fewer than train_group_size - 1 = {need} negatives "
                f"(the fewest: {file.fewest_negatives}); the trainer repeats them within the group"
            )
            yield warning(
                "data.few-negatives", reason, f"mine more, or set train_group_size: {file.fewest_negatives + 1}"
            )
        if file.scores_range and file.scores_range[0] >= 0 and file.scores_range[1] <= 1:
            reason = (
                f"{file.path}: every score lies in [0, 1]; the trainer takes a softmax over them at temperature 1, "
                f"and even 1 against 0 then gives the positive only {_best_share(need):.2f} of the weight"
            )
            yield warning("data.scores-in-unit", reason, "write raw reranker logits, without sigmoid")
        if file.several_positives:
            reason = (
                f"{file.path}: {file.several_positives} of {file.rows} rows have two positives or more; the trainer "
                "draws one of them at random each time, whatever their grades, and the others are not in that step"
            )
            yield warning("data.several-positives", reason, "one row for each positive trains on all of them")


def columns(plan: LaunchPlan) -> Iterator[Problem]:
    """What `datasets` makes of the files' columns, before FlagEmbedding sees a row."""
    for file in plan.data.files:
        if file.late:
            names = " and ".join(file.late)
            reason = (
                f"{file.path}: the loader infers the columns from the first 10 MiB, and {names} come, or have their "
                "first decimals, only after them; it stops there (DatasetGenerationError)"
            )
            yield error("data.late-column", reason, f"move a row with such {names} to the top of the file")
    for name in SCORES if plan.on("knowledge_distillation") else ():
        kinds = {kind: file.path for file in plan.data.files for column, kind in file.columns if column == name}
        if len(kinds) > 1:
            reason = (
                f"{name} holds only whole numbers in {kinds['whole']} and decimals in {kinds['decimal']}; the loader "
                "does not put such files together (ValueError: the features can't be aligned)"
            )
            yield error("data.score-kinds", reason, "write decimals everywhere: 5.0, not 5")


def prompts(plan: LaunchPlan) -> Iterator[Problem]:
    """Rows with and without `prompt`: those without would get 'None' before the query."""
    if plan.recipe == "reranker":  # its trainer reads no `prompt`
        return
    prompted = sum(f.prompted for f in plan.data.files)
    if 0 < prompted < plan.data.rows:
        reason = f"{prompted} of {plan.data.rows} rows have `prompt`; the others would train on 'None' + query"
        yield error("data.prompt-mixed", reason, "give every row a `prompt` (an empty one counts), or none")
    elif prompted and plan.value("query_instruction_for_retrieval"):
        reason = "every row has its own `prompt`, so query_instruction is not used"
        yield warning("data.prompt-wins", reason, "leave out one of the two")


def _best_share(negatives: int) -> float:
    """Softmax weight of a positive scored 1 among `negatives` scored 0: e / (e + negatives)."""
    return 2.718281828 / (2.718281828 + negatives)


def batch(plan: LaunchPlan) -> Iterator[Problem]:
    """Steps and negatives: what a step really holds."""
    b = plan.batch
    if b.rows and not b.steps_per_epoch:
        reason = (
            f"{b.rows} rows give no step: one takes {b.queries_per_step} "
            f"({plan.value('per_device_train_batch_size')} per process × {plan.world_size}), and a short one is dropped"
        )
        enough, per_node = b.rows // plan.world_size, b.rows // plan.nnodes
        fix = f"set batch_size: {enough} or less, or add rows" if enough else f"add rows: at least {plan.world_size}"
        if not enough and per_node:
            fix += f"; or fewer processes: hardware.nproc_per_node: {per_node} or less, with batch_size: 1"
        yield error("batch.zero-steps", reason, fix)
    elif b.dropped * 5 > b.rows:
        reason = f"{b.dropped} of {b.rows} rows are left over in each epoch: a step takes {b.queries_per_step}"
        yield warning("batch.leftover", reason, "a smaller batch_size leaves fewer")
    unified = plan.on("unified_finetuning")
    if plan.recipe != "reranker" and not (b.local_negatives if unified else b.in_batch_negatives):
        who, others = "each query sees", ""
        if unified and b.in_batch_negatives:
            who = "the sparse and ColBERT losses see"
            others = f"; the dense loss also {b.in_batch_negatives} of the other processes"
        reason = f"batch_size is 1: {who} only the {b.hard_negatives} negatives of the query's own row{others}"
        yield warning("batch.no-in-batch", reason, "a larger batch_size adds negatives, accumulation does not")
    accumulation = int(plan.number("gradient_accumulation_steps", 1))
    if accumulation > 1 and plan.recipe != "reranker":
        reason = (
            f"gradient_accumulation_steps {accumulation} averages {accumulation} steps but adds no negatives: each "
            f"query still has {b.hard_negatives} hard ones and {b.in_batch_negatives} in the batch"
        )
        yield warning("batch.accumulation", reason, "for more negatives: a larger batch_size, or more processes")


def distillation(plan: LaunchPlan) -> Iterator[Problem]:
    """knowledge_distillation against the rows that have scores."""
    if plan.on("knowledge_distillation") and not plan.data.fully_scored:
        reason = f"knowledge_distillation needs scores on every row; {plan.data.scored} of {plan.data.rows} have them"
        yield error("distillation.no-scores", reason, "score all rows, or leave the argument out")
    elif 0 < plan.data.scored < plan.data.rows:
        reason = f"only {plan.data.scored} of {plan.data.rows} rows have scores: they are not used"
        yield warning("distillation.partial", reason, "score all rows to distil from them")


def same_dataset(plan: LaunchPlan) -> Iterator[Problem]:
    """What same_dataset_within_batch makes of each file."""
    if not plan.on("same_dataset_within_batch"):
        return
    threshold = int(plan.number("small_threshold", 0))
    for file in plan.data.files:
        step = plan.batch.queries_per_step // (2 if file.symmetric else 1)
        if 0 < file.rows < max(step, threshold):
            why = f"one step's {step}" if file.rows < step else f"small_threshold's {threshold}"
            reason = f"{file.path}: {file.rows} rows, fewer than {why}: never trained on"
            fix = "merge it with another file" + (", or lower batch_size" if file.rows < step else "")
            yield warning("data.small-file", reason, fix)
        if file.mixed_types:
            reason = (
                f"{file.path}: its rows differ in `type`; the trainer stops at the first step that holds two of them"
            )
            yield error("data.mixed-types", reason, "one file for each type, or leave `type` out of the rows")
        if file.path.stem.endswith("no_in_batch_neg"):
            reason = f"{file.path}: its name turns in-batch negatives off for it"
            yield warning("data.no-in-batch-neg", reason, "rename the file if that is not meant")
        elif file.path.parent.name.endswith("no_in_batch_neg"):
            reason = (
                f"{file.path}: its folder's name does not turn in-batch negatives off, for files are passed one by one"
            )
            yield warning("data.no-in-batch-neg", reason, f"if that is meant: {file.path.stem}_no_in_batch_neg.jsonl")
