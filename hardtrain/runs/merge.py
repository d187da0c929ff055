"""Records of several machines in one store."""

from collections import Counter
from pathlib import Path

from hardtrain import files
from hardtrain.errors import StoreError
from hardtrain.files import sha256
from hardtrain.runs.store import SCHEMA, RunStore, parse_record

ENVIRONMENTS = "environments"  # records whose numbers differ from those of the same run


def merge(sources: list[RunStore], into: RunStore) -> tuple[Counter, list[str]]:
    """Copy the records of ``sources``, with their artefacts, into another store.

    A run that is there with the same numbers is left alone. With other numbers (another CPU or
    GPU, another version of torch) it is kept beside it, as ``environments/ID.DIGEST.json``, and
    said. A damaged record or artefact is refused: it stays where it is, and is said.

    Returns:
        How many records were ``new``, the ``same``, ``other`` and ``damaged``, and what to say.

    Raises:
        StoreError: one of ``sources`` is no store, or a file cannot be written.
    """
    for source in sources:
        if not (source.path / "records").is_dir():
            raise StoreError(f"{source.path} is no store: it has no folder 'records'")
    into.open()
    counts: Counter = Counter(dict.fromkeys(("new", "same", "other", "damaged"), 0))
    said = []
    for source in sources:
        for path in sorted(source.path.glob("records/[!.]*.json")):
            what, why = _merged(source, path, into)
            counts[what] += 1
            said += [f"{path}: {why}"] if why else []
    return counts, said


def _merged(source: RunStore, path: Path, into: RunStore) -> tuple[str, str]:
    """What became of one record, and what is to be said of it."""
    try:
        content = path.read_bytes()
        record = parse_record(path.stem.rpartition("-")[0], content)
        wanted = {name: Path(e["file"]).name for name, e in record.get("artefacts", {}).items()}
        files_of = {name: (source.path / "artefacts" / file).read_bytes()
                    for name, file in wanted.items()}  # fmt: skip
    except Exception as error:  # whatever json makes of any bytes
        return "damaged", f"left out, since it or an artefact is damaged or missing ({error})"
    if record["schema"] > SCHEMA:
        return "damaged", "left out, since a newer hardtrain wrote it"
    for name, content_of in files_of.items():
        if sha256(content_of) != record["artefacts"][name]["sha256"]:
            return "damaged", f"left out, since its artefact {wanted[name]} is damaged"
    with into.lock(record["key"], record["fingerprint"]):
        there = into.load(record["key"], record["fingerprint"])
        if there is not None and _numbers(there) != _numbers(record):
            kept = into.path / ENVIRONMENTS / f"{path.stem}.{sha256(content)[:8]}.json"
            files.write_atomically(kept, content)
            return "other", f"other numbers than {into.path} has, kept as {kept.name}: " + _differ(
                there, record
            )
        kept_artefacts = (there or {}).get("artefacts", {})
        lacking = {name: c for name, c in files_of.items() if name not in kept_artefacts}
        for name, content_of in lacking.items():
            files.write_atomically(into.path / "artefacts" / wanted[name], content_of)
        if there is None or lacking:
            new = {name: record["artefacts"][name] for name in lacking}
            artefacts = {"artefacts": kept_artefacts | new} if kept_artefacts or new else {}
            into.save((there or record) | artefacts)
    return ("same" if there else "new"), ""


def _numbers(record: dict) -> list:
    return [record[name] for name in ("status", "metrics", "history")]


def _differ(there: dict, record: dict) -> str:
    """In what the two environments differ."""
    pairs = [
        f"{name}: {record['timings'].get(name)}, not {value}"
        for name, value in there["timings"].items()
        if not name.startswith("seconds") and record["timings"].get(name) != value
    ]
    return "; ".join(pairs) or "in nothing that was recorded"
