"""What `check` looks for in the recipes `reranker` and `matryoshka`, in `base` with matryoshka_dims, and in evaluation."""

from __future__ import annotations

from collections.abc import Iterator

from launch.base_model import hidden_size, read_json, token_limit
from launch.plan import LaunchPlan
from launch.problems import Problem, error, warning

SPECIAL = 4  # tokens around a pair at most: <s> query </s></s> passage </s>
UNREAD = ("max_len", "sub_batch_size")  # the reranker's trainer takes them and never reads them


def reranker(plan: LaunchPlan) -> Iterator[Problem]:
    """A head with one score, room for a pair, whole batches, and arguments that the trainer reads."""
    if plan.recipe != "reranker":
        return
    config = read_json(plan.model / "config.json")
    head = next((a for a in config.get("architectures") or [] if str(a).endswith("ForSequenceClassification")), None)
    if config and not head:
        reason = f"{plan.model}: has no head for a score (its architectures: {config.get('architectures')})"
        yield warning("model.head", f"{reason}; one is made of random numbers", "start from a bge-reranker")
    labels = config.get("num_labels", len(config.get("id2label") or {}) or 2)  # 2 is what transformers leaves out
    if head and labels != 1:
        reason = f"{plan.model}: its head gives {labels} values, a reranker's gives one"
        yield error("model.labels", f"{reason}; the trainer stops at loading", "start from a model with num_labels 1")
    query, passage = (int(plan.value(name) or 0) for name in ("query_max_len", "passage_max_len"))
    limit = token_limit(plan.model)
    if limit and max(query, passage) <= limit < query + passage:
        reason = f"query_max_len + passage_max_len is {query + passage}, the model takes {limit} tokens for a pair"
        yield error("model.length", reason, f"set passage_max_len: {limit - query}")
    if passage - passage // 4 <= SPECIAL:  # a query gets query_max_len + passage_max_len // 4 (AbsRerankerTrainDataset)
        reason = f"passage_max_len is {passage}: a long query leaves no room for the passage, and the tokenizer stops"
        yield error("model.length", reason, f"set passage_max_len: {2 * SPECIAL} or more")
    left = plan.data.rows % int(plan.value("per_device_train_batch_size") or 1)
    if left and plan.world_size == 1 and not plan.on("dataloader_drop_last"):  # several processes get it filled up
        reason = f"the last batch has {left} rows, and the trainer divides it into batch_size groups all the same"
        fix = "leave arguments.dataloader_drop_last out"
        yield error("batch.mixed-groups", f"{reason}: it stops there, or learns from mixed-up groups", fix)
    if plan.value("model_type") not in (None, "encoder"):
        reason = f"model_type is {plan.value('model_type')}: this trainer's model is an encoder"
        yield error("argument.value", reason, "leave arguments.model_type out")
    for name in (n for n in UNREAD if plan.value(n)):
        fix = "set query_max_len and passage_max_len" if name == "max_len" else "lower batch_size to save memory"
        yield warning("argument.unread", f"the reranker's trainer takes {name} and never reads it", fix)
    prompted = sum(f.prompted for f in plan.data.files)
    if prompted:
        reason = f"{prompted} rows have `prompt`, which only embedders' trainers read"
        yield warning("data.prompt-unread", reason, "set query_instruction: to one for all")


def evaluation(plan: LaunchPlan) -> Iterator[Problem]:
    """Arguments that want the trainer to evaluate: no recipe gives it an eval set."""
    given = {name: plan.value(name) for name in ("eval_strategy", "save_strategy")}
    asked = ["eval_strategy"] if given["eval_strategy"] not in (None, "no") else []
    asked += ["save_strategy: best"] if given["save_strategy"] == "best" else []
    asked += [name for name in ("load_best_model_at_end", "eval_on_start") if plan.on(name)]
    for name in asked:
        reason = f"arguments.{name}: the trainer has no eval set to evaluate on, and stops at that or never does"
        fix = "leave it out; `dev:` scores base and tuned model at the end"
        yield error("argument.evaluation", reason, fix)


def matryoshka(plan: LaunchPlan) -> Iterator[Problem]:
    """Lengths of vectors that the model has; no DeepSpeed under the cached loss."""
    given = next((a.words for a in plan.arguments if a.name in ("matryoshka_dims", "mrl_dims")), ())
    dims, width = [int(word) for word in given if word.isdigit()], hidden_size(plan.model)
    if plan.recipe == "matryoshka" and plan.deepspeed:
        reason = "the cached loss runs backward passes inside a backward pass; under DeepSpeed that is not tried"
        fix = "leave `deepspeed:` out, or take `recipe: base`, which trains for matryoshka_dims too"
        yield error("deepspeed.matryoshka", reason, fix)
    fix = "set `matryoshka_dims:` of launch.yaml"
    if plan.recipe == "base" and plan.on("use_mrl") and not dims:
        yield error("matryoshka.dims", "use_mrl needs mrl_dims, the lengths of the vectors", fix)
    if dims and width and max(dims) > width:
        reason = f"matryoshka_dims has {max(dims)}, the model's vectors have {width} numbers"
        yield error("matryoshka.dims", reason, f"begin with {width}")
    elif dims and width and width not in dims and (plan.recipe == "matryoshka" or plan.on("use_mrl")):
        reason = f"matryoshka_dims leaves out {width}, so the whole vector is not trained"
        yield warning("matryoshka.whole", reason, f"begin with {width}")
