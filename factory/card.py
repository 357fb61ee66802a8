"""The data card: README.md beside train.jsonl, with the header that dataset hubs and `datasets.load_dataset` read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.modelfiles import model_fingerprint, read_json
from factory.records import InputError, read_lines
from factory.workspace import atomic_text, sha256_file

if TYPE_CHECKING:
    from factory.config import Config

SOURCES = 50  # files that are named; of more the number is told
NEGATIVES = {  # choose.preset in words, from factory.settings.ChooseConfig
    "resolve": "no copies, and nothing that probably answers the question",
    "perc": "a score of at most a share of the positive's (NV-Retriever's TopK-PercPos)",
    "margin": "a score that stays a margin below the positive's (NV-Retriever's TopK-MarginPos)",
    "topk": "the first ranks of the search",
    "range": "a range of ranks of the search (FlagEmbedding's hn_mine)",
    "window": "a window of distances from the question",
    "rules": "conditions that the configuration states",
}
# What bounds how a preset chooses: keys of `choose`.
BOUNDS = {"resolve": ("reject_at", "ceiling"), "perc": ("ceiling",), "margin": ("margin",), "range": ("range",)}
BOUNDS |= {"window": ("window",)}
# Short names that dataset hubs know; whatever else a user states goes under `license_name`.
LICENCE = re.compile(
    r"mit|apache-2\.0|cc0-1\.0|cc-by(-nc)?(-sa|-nd)?-[234]\.0|odc-by|odbl|cdla-[a-z]+-[12]\.0|(a|l)?gpl-[23]\.0"
)
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


def materials(config: Config) -> dict[str, Any]:
    """What a build uses beside the documents, for run.json: names and SHA-256 of its models and prompts. No path, no URL."""
    from factory.negatives import judges
    from factory.prompt_files import PROMPTS
    from factory.prompting import prompt_file
    from factory.quality import needs_llm, uses_judge

    given = config.input.kind == "pairs"
    files = [] if given else [prompt_file(config.generate, lang) for lang in ("zh", "en")]
    judged = judges(config) or config.score.reranker == "llm" or needs_llm(config)
    families = [
        *(["askers"] if config.generate.propose_askers and not given else []),
        *(["judge"] if judged else []),
        *(["specific"] if uses_judge(config) else []),
    ]
    files += [f for family in families for f in sorted(PROMPTS.glob(f"{family}.*.md"))]
    used = {"model to train": config.model.path}
    if not given or judged:
        used["LLM"] = config.llm.model
    if config.score.reranker and config.score.reranker != "llm":
        used["reranker"] = config.score.reranker
    return {
        "models": {
            what: {
                "name": _llm(path) if what == "LLM" else Path(path).name,
                "sha256": model_fingerprint(path) if Path(path).exists() else None,
            }
            for what, path in used.items()
            if path
        },
        "prompts": {f.name: sha256_file(f) for f in dict.fromkeys(files) if f.is_file()},
    }


def write_card(run_folder: Path) -> Path:
    """Write `README.md` in a run's folder from what lies there. Every number is counted in, or read from, its files.

    Raises:
        InputError: no run.json in the folder, or one of its files is not valid.
    """
    import jinja2
    import yaml

    run = read_json(run_folder / "run.json")
    stages = {name: stage.get("counts", {}) for name, stage in run.get("stages", {}).items()}
    config: Mapping[str, Any] = run.get("config", {})
    train, kept, sets = _train(run_folder / "train.jsonl"), _kept(run_folder / "4-kept.jsonl"), _sets(run_folder)
    facts = {
        "name": run_folder.resolve().name,
        "version": run.get("bge_factory"),
        "config": config,
        "llm": _llm(config["llm"]["model"]) if kept["origins"]["generated"] else "",
        "counts": stages,
        "stages": run.get("stages", {}),
        "train": train,
        "kept": kept,
        "sets": sets,
        "sources": _sources(run_folder / "1-documents.jsonl"),
        "shown": SOURCES,
        "materials": run.get("materials"),
        "versions": {k: v for k, v in run.get("versions", {}).items() if v},
        "licence": config.get("card", {}).get("licence", ""),
        "negatives": _negatives(config.get("choose", {})),
        "found_by": [k.removeprefix("by ") for k in stages.get("mine", {}) if k.startswith("by ")],
        "by": "; ".join(
            f"{what}: {', '.join(f'{key} {n:,}' for key, n in counter.most_common())}"
            for what, counter in kept.items()
            if counter and what != "splits"
        ),
        "limits": list(_limits(run_folder, config, stages, train, kept, sets)),
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # Markdown
    )
    environment.filters |= {"number": "{:,}".format, "cell": _cell}
    body = environment.get_template("card.md.j2").render(facts)
    path = run_folder / "README.md"
    with atomic_text(path) as f:
        f.write(f"---\n{yaml.safe_dump(_header(facts), allow_unicode=True, sort_keys=False)}---\n{body}")
    return path


def _llm(model: str) -> str:
    """The name of a file or folder, or a served model's name as it is."""
    return Path(model).name if Path(model).is_absolute() else model


def _header(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that dataset hubs know."""
    licence = facts["licence"]
    known = LICENCE.fullmatch(licence.lower())
    configs = [("train", "train", "train.jsonl")]
    configs += [
        (f"{name}-{part}", {"eval": "test"}.get(name, name), f"{name}/{part}.jsonl")
        for name in facts["sets"]
        for part in ("corpus", "queries")
    ]
    rows = facts["train"]["rows"]
    return {
        "pretty_name": facts["name"],
        "language": sorted(set(facts["kept"]["languages"]) - {"not stated"}),
        **({"license": licence.lower() if known else "other"} if licence else {}),
        **({"license_name": licence} if licence and not known else {}),
        "task_categories": ["text-retrieval", "sentence-similarity"],
        "size_categories": [next((size for limit, size in SIZES if rows < limit), "n>10M")],
        "tags": ["embeddings", "hard-negatives", *(["synthetic"] if facts["kept"]["origins"]["generated"] else [])],
        "configs": [
            {"config_name": name, "data_files": [{"split": split, "path": path}]}
            | ({"default": True} if name == "train" else {})
            for name, split, path in configs
        ],
    }


def _train(path: Path) -> dict[str, int]:
    """Of train.jsonl: rows, positives, negatives, rows with scores; the most negatives of a row, and rows with fewer."""
    if not path.is_file():
        raise InputError("no train.jsonl, so there is nothing to describe", where=path, fix="build first")
    found: Counter[str] = Counter()
    sizes: Counter[int] = Counter()
    for _, row in read_lines(path):
        found.update(rows=1, positives=len(row["pos"]), negatives=len(row["neg"]))
        found["scored"] += "pos_scores" in row
        sizes[len(row["neg"])] += 1
    most = max(sizes, default=0)
    fewer = sum(n for size, n in sizes.items() if size < most)
    return {key: found[key] for key in ("rows", "positives", "negatives", "scored")} | {
        "most": most,
        "fewer": fewer,
    }


def _kept(path: Path) -> dict[str, Counter[str]]:
    """Of the kept questions: how many of each split, language, kind and origin."""
    keys = {"splits": "split", "languages": "language", "types": "type", "origins": "origin"}
    found: dict[str, Counter[str]] = {name: Counter() for name in keys}
    for _, row in read_lines(path) if path.is_file() else ():
        for name, key in keys.items():
            found[name][row.get(key) or "not stated"] += 1
    return found


def _sets(run: Path) -> dict[str, dict[str, Any]]:
    """Of eval/ and dev/, where they are: passages, questions, judgements, and who asked."""
    found: dict[str, dict[str, Any]] = {}
    for name in ("eval", "dev"):
        folder = run / name
        if (folder / "queries.jsonl").is_file():
            origins = Counter(str(row.get("origin", "")) for _, row in read_lines(folder / "queries.jsonl"))
            with open(folder / "qrels.tsv", encoding="utf-8") as f:
                judgements = sum(1 for _ in f) - 1
            passages = sum(1 for _ in read_lines(folder / "corpus.jsonl"))
            found[name] = {"passages": passages, "judgements": judgements, "origins": origins}
            found[name]["questions"] = origins.total()
    return found


def _sources(path: Path) -> list[dict[str, Any]]:
    """Each source file with its documents and characters, the largest first. Of an absolute path only the name."""
    documents: Counter[str] = Counter()
    characters: Counter[str] = Counter()
    for _, row in read_lines(path) if path.is_file() else ():
        name = Path(row["source"]).name if Path(row["source"]).is_absolute() else row["source"]
        documents[name] += 1
        characters[name] += len(row["text"])
    return [{"name": n, "documents": documents[n], "characters": c} for n, c in characters.most_common()]


def _negatives(choose: Mapping[str, Any]) -> str:
    preset = choose.get("preset", "")
    bounds = [f"{key} {choose[key]}" for key in BOUNDS.get(preset, ()) if key in choose]
    said = f", chosen by the preset `{preset}`: {NEGATIVES.get(preset, '')}" if preset else ""
    return said + (f" ({', '.join(bounds)})" if bounds else "")


def _limits(
    run: Path,
    config: Mapping[str, Any],
    stages: Mapping[str, Mapping[str, int]],
    train: Mapping[str, int],
    kept: Mapping[str, Counter[str]],
    sets: Mapping[str, Mapping[str, Any]],
) -> Iterable[str]:
    """What a user of the data should know, one sentence or two each."""
    yield _seen(run, kept["splits"].total())
    written, all_ = kept["origins"]["generated"], kept["origins"].total()
    if written:
        yield f"{written:,} of {all_:,} kept questions ({_share(written, all_)}) were written by an LLM, not by people who searched."
    chosen = stages.get("choose", {})
    deeper, random = (chosen.get(f"negative {k}", 0) for k in ("fill-from-deeper-ranks", "random-fill"))
    if deeper or random:
        yield (
            f"Of {chosen['negative']:,} chosen negatives {deeper:,} were filled up from easier ranks and {random:,} are "
            "passages drawn at random, since too few candidates were allowed."
        )
    if train["fewer"]:
        yield f"{train['fewer']:,} of {train['rows']:,} rows have fewer than {train['most']} negatives."
    yield _judge(run / "false-negative-model.json" if "judge" in stages else None)
    if 0 < train["scored"] < train["rows"]:
        yield f"Only {train['scored']:,} of {train['rows']:,} rows have reranker scores."
    cut = next((n for k, n in stages.get("split", {}).items() if k.startswith("longer than")), 0)
    if cut:
        yield f"{cut:,} of {stages['split']['passages']:,} passages are longer than the model reads; the rest of them is not seen."
    if not config.get("test", {}).get("hold_out", True):
        yield "The documents that the test questions rest on were trained on (test.hold_out is off)."
    if "eval" not in sets:
        yield "Nothing was held out for a test."
    elif generated := sets["eval"]["origins"]["generated"]:
        yield (
            f"{generated:,} of {sets['eval']['questions']:,} test questions were written by the same LLM as the training "
            "questions: a gain on them may be larger than on questions that people ask."
        )


def _seen(run: Path, questions: int) -> str:
    from factory.report_reviews import reviews_view

    if (reviews := reviews_view(run)) and reviews.reviewed:
        seen = f"{reviews.reviewed:,} of {questions:,}"
        return f"A person decided on {seen} kept questions (review.jsonl); nobody has checked the others."
    return "No person has checked the questions, their answers or the negatives."


def _judge(path: Path | None) -> str:
    if path is None or not path.is_file():
        return "No LLM judged the candidates: what is no negative was decided by scores alone, so some negatives may answer."
    judge = read_json(path).get("judge")
    if not judge:
        return "The LLM that judged candidates has no measured error."
    return (
        f"An LLM judged some of the candidates. On {judge['controls']:,} controls it was right on "
        f"{100 * judge['sensitivity']:.0f} % of the passages that answer and {100 * judge['specificity']:.0f} % of the others."
    )


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %"


def _cell(text: Any) -> str:
    """Text that does not break a Markdown table."""
    return str(text).replace("|", "\\|").replace("\n", " ")
