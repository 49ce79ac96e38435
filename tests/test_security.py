"""Hostile files and texts are never run, never used as a path, and stay plain text on a page; and secrets stay secret."""
from __future__ import annotations

import ast
import io
import json
import lzma
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dyme_core import config, utils
from dyme_core.data import datasets, schema
from dyme_core.data.bad_rows import BadRows
from dyme_core.data.benchmarks import rows
from dyme_core.data.benchmarks.own import own_records
from dyme_core.data.benchmarks.tabular import csv_facts
from dyme_core.data.schema import DataError
from dyme_core.models import loading
from dyme_core.pipeline import methods, train
from dyme_core.pipeline.checkpointing import CHECKSUMS, Keeper
from dyme_core.supervision.fact_extraction import FactStore, Picture, TableFacts, store_key
from dyme_core.supervision.llm import completion, parsing
from dyme_core.supervision.llm.cache import FIELDS, Recording
from dyme_core.utils import hash_file
from study import tables
from study.runner import run_notebooks
from study.runner.execution import NotebookError
from study.runner.run_notebooks import Workspace

ROOT = Path(__file__).resolve().parents[1]
SECRET = "sk-planted-0123456789abcdef"

# --- What the sources call ------------------------------------------------------------------------------------------------

SOURCES = [*(path for package in ("dyme_core", "study", "scripts", "benchmarks")
             for path in sorted((ROOT / package).rglob("*.py"))),
           *sorted((ROOT / "notebooks").glob("*.ipynb"))]
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.execvp", "subprocess.getoutput",
         "subprocess.getstatusoutput", "pickle.load", "pickle.loads", "pd.read_pickle", "joblib.load", "yaml.load",
         "yaml.unsafe_load", "yaml.full_load", "marshal.loads", "shelve.open", "tempfile.mktemp", "torch.hub.load"}
MODULES = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "telnetlib", "ftplib", "xmlrpc"}


def code_of(path: Path) -> str:
    if path.suffix == ".py":
        return path.read_text()
    return "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")


def unsafe(source: str) -> list[str]:
    """Calls and arguments that run code or read what may run it, each with its line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"line {node.lineno}: imports {name}" for name in names if name.split(".")[0] in MODULES]
        if not isinstance(node, ast.Call):
            continue
        name, given_ = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name in CALLS:
            found.append(f"line {node.lineno}: calls {name}")
        if name == "importlib.import_module" and not isinstance(node.args[0], ast.Constant):
            found.append(f"line {node.lineno}: imports what is not named in the source")
        if name == "torch.load" and given_.get("weights_only") != "True":
            found.append(f"line {node.lineno}: torch.load without weights_only=True")
        if name.endswith("np.load") and "allow_pickle" in given_:
            found.append(f"line {node.lineno}: np.load with allow_pickle")
        found += [f"line {node.lineno}: {word}={given_[word]}" for word, safe in
                  (("shell", "False"), ("trust_remote_code", "False"), ("use_safetensors", "True"), ("verify", "True"))
                  if word in given_ and given_[word] != safe]
        if name.endswith("from_pretrained") and "Model" in name and "use_safetensors" not in given_ and None not in given_:
            found.append(f"line {node.lineno}: {name} may read pickled weights")
    return found


@pytest.mark.promise("security", "no source, benchmark or notebook evaluates text, unpickles, starts a shell or runs a model's "
                                 "own code")
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_source_runs_what_it_reads(path: Path) -> None:
    assert unsafe(code_of(path)) == []


@pytest.mark.parametrize("source", [
    "eval(x)", "import os\nos.system(x)", "from pickle import loads", "import pickle", "torch.load(x)",
    "torch.load(x, weights_only=False)", "subprocess.run(x, shell=True)", "load(x, trust_remote_code=True)", "yaml.load(x)",
    "AutoModel.from_pretrained(x)", "AutoModel.from_pretrained(x, use_safetensors=False)", "np.load(x, allow_pickle=True)",
    "httpx.get(x, verify=False)", "pd.read_pickle(x)", "__import__(x)",
    "importlib.import_module(x)"])
def test_the_search_finds_what_is_forbidden(source: str) -> None:
    assert unsafe(source)


def test_the_search_leaves_safe_code_alone() -> None:
    assert unsafe("torch.load(x, weights_only=True)\nsubprocess.run([x])\nyaml.safe_load(x)\nmodel.eval()\nre.compile(x)") == []


# --- Pickles that would run something --------------------------------------------------------------------------------------


class Payload:
    """A pickle that makes a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.path,)


@pytest.fixture
def owned(tmp_path: Path) -> Path:
    """What a loaded payload makes; at the end it must not be there."""
    yield tmp_path / "owned"
    assert not (tmp_path / "owned").exists(), "the payload was run"


def torch_payload(owned: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"state": Payload(owned)}, buffer)
    return buffer.getvalue()


def test_the_payload_works_where_it_is_loaded(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "plain")))
    torch.load(io.BytesIO(torch_payload(tmp_path / "torch")), weights_only=False)
    assert (tmp_path / "plain").is_dir() and (tmp_path / "torch").is_dir()


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", content)
    return buffer.getvalue()


READERS: dict[str, Callable[[Path], object]] = {
    "own.jsonl": own_records, "rows.json": rows.read_json, "export.jsonl": Recording, "cache.sqlite": Recording,
    "rows.jsonl": utils.read_rows, "rows.jsonl.xz": utils.read_rows, "weights.safetensors": load_file,
    "1.png": lambda path: schema.Record("a", "q", "a", "k", "s", "train", path).load_image()}


@pytest.mark.promise("security", "a pickle in the place of data, a cache, rows, weights or a picture is refused and never run")
@pytest.mark.parametrize("form", ["plain", "torch", "zip", "xz"])
@pytest.mark.parametrize("name", READERS)
def test_a_pickle_in_the_place_of_a_file_is_never_run(name: str, form: str, owned: Path, tmp_path: Path) -> None:
    content = pickle.dumps(Payload(owned))
    contents = {"plain": content, "torch": torch_payload(owned), "zip": zipped(content), "xz": lzma.compress(content)}
    (tmp_path / name).write_bytes(contents[form])
    with pytest.raises((ValueError, SafetensorError)):
        READERS[name](tmp_path / name)


@pytest.mark.promise("security", "a model whose weights are pickled is not loaded, nor is code that lies beside it")
@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", "adapter_model.bin", "model.safetensors"])
def test_a_model_with_pickled_weights_or_code_is_never_run(file: str, owned: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(ROOT / "bases" / "svlm-s0", folder)
    (folder / "model.safetensors").unlink()
    (folder / file).write_bytes(torch_payload(owned))
    (folder / "modeling_dyme.py").write_text(f"import os\nos.mkdir({str(owned)!r})\n")
    for name in ("config.json", "processor_config.json"):
        told = json.loads((folder / name).read_text())
        told["auto_map"] = dict.fromkeys(("AutoConfig", "AutoModelForImageTextToText", "AutoProcessor"), "modeling_dyme.Owned")
        (folder / name).write_text(json.dumps(told))
    with pytest.raises((OSError, ValueError, SafetensorError)):
        loading.load_policy(folder)


@pytest.mark.promise("security", "a pickle planted in a checkpoint, its checksum forged, stops the run and is never run")
@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_pickle_in_a_checkpoint_is_never_run(file: str, owned: Path, stopped: tuple[train.Run, Path]) -> None:
    run, checkpoint = stopped
    content = (checkpoint / file).read_bytes()
    (checkpoint / file).write_bytes(torch_payload(owned))
    keeper = Keeper(methods.fingerprint(run))
    assert f"changed or torn: {file}" in keeper.fault(checkpoint)
    told = json.loads((checkpoint / CHECKSUMS).read_text())
    told["files"][file] = hash_file(checkpoint / file)
    (checkpoint / CHECKSUMS).write_text(json.dumps(told))
    assert keeper.fault(checkpoint) is None, "forged"
    try:
        with pytest.raises(pickle.UnpicklingError):
            train.execute(run, ("validation",))
    finally:
        (checkpoint / file).write_bytes(content)
        told["files"][file] = hash_file(checkpoint / file)
        (checkpoint / CHECKSUMS).write_text(json.dumps(told))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> tuple[train.Run, Path]:
    """A run that was stopped right after its first checkpoint."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("root")
    (root / "pyproject.toml").touch()
    shutil.copytree(ROOT / "bases" / "svlm-s0", root / "bases" / "svlm-s0")
    small = {"world.train_questions": 8, "world.validation_questions": 2, "world.test_questions": 2, "training.steps": 2,
             "training.evaluate_every": 2, "training.prompts_per_step": 2, "training.num_generations": 2, "save_every": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DYME_ROOT", str(root))
        run, on_save = train.Run(config.load_profile("smoke", **small), "sft"), Keeper.on_save

        def stop(self, *args, **kwargs):
            on_save(self, *args, **kwargs)
            raise KeyboardInterrupt

        with patch.context() as stopping:
            stopping.setattr(Keeper, "on_save", stop)
            with pytest.raises(KeyboardInterrupt):
                train.execute(run, ("validation",))
        yield run, run.paths.runs / run.name / "phase-0" / "checkpoint-1"


# --- A fuzzer --------------------------------------------------------------------------------------------------------------


class Verdict(BaseModel):
    rating: str
    weight: float = 1.0


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(
    ["question", "answer", "image", "facts", "key", "reply", "../x", "<image>", "1.png"]), lambda inner:
    st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["question", "answer", "image", "id", "facts", "trace", "supervision", "entity", "value", "files", "fingerprint", "key",
         "reply", "rating", "choices", "message", "content", "usage"]), inner, max_size=5), max_leaves=12)
CONTENT = st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()) | st.lists(JSON, max_size=3).map(
    lambda values: b"\n".join(json.dumps(value).encode() for value in values)) | st.text(max_size=60).map(
    lambda text: text.encode("utf-8", "surrogatepass"))


def read_checkpoint(path: Path) -> None:
    shutil.copy(path, path.parent / CHECKSUMS)
    assert Keeper("f").fault(path.parent) is not None


FUZZED: dict[str, tuple[Callable[[Path], object], tuple[type[Exception], ...]]] = {
    "own.jsonl": (own_records, (DataError,)), "skip.jsonl": (lambda path: own_records(path, bad=BadRows("skip")), (DataError,)),
    "rows.json": (rows.read_json, (DataError,)), "export.jsonl": (lambda path: Recording(path).close(), (ValueError,)),
    "utils.jsonl": (utils.read_rows, (ValueError,)), "utils.jsonl.xz": (utils.read_rows, (ValueError,)),
    "checkpoint": (read_checkpoint, ()), "completion": (lambda path: parsing.read_object(
        completion.read_completion(path.read_text("utf-8", "replace")), Verdict), (parsing.Unusable, completion.NoReply)),
    "reply": (lambda path: parsing.read_object(completion.Reply(path.read_text("utf-8", "replace")), Verdict),
              (parsing.Unusable,)),
    "table.csv": (lambda path: csv_facts(path.read_text("utf-8", "replace")), ())}


@pytest.mark.exhaustive
@pytest.mark.promise("security", "whatever bytes or JSON a reader is given, it reads them or raises its documented error")
@pytest.mark.parametrize("name", FUZZED)
def test_random_content_is_read_or_refused_by_the_documented_error(name: str, tmp_path: Path) -> None:
    reader, errors = FUZZED[name]
    outcomes = set()

    @seed(0)
    @settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(CONTENT)
    def fuzz(content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        try:
            reader(tmp_path / name)
            outcomes.add("read")
        except errors:
            outcomes.add("refused")

    fuzz()
    assert outcomes


@pytest.mark.promise("bad input", "caches, rows, facts and recordings that are larger than any of ours are refused unread")
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.xz", "export.jsonl", "cache.sqlite", "facts.json"])
def test_what_is_too_large_is_refused(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(utils, "MAX_MIB", 2)
    path, line = tmp_path / name, json.dumps({"text": "x" * 2**21}).encode()
    if name == "cache.sqlite":
        with Recording(path) as recording:
            recording.put({**dict.fromkeys(FIELDS), "key": "k", "reply": {"text": "x" * 2**21}})
            with pytest.raises(ValueError, match="at most 1048576 bytes, got more"):
                recording.get("k")
        return
    if name == "facts.json":
        picture, backend = Picture("chart-7", b"1"), TableFacts()
        path = tmp_path / backend.name / f"{store_key(picture, backend)}.json"
        path.parent.mkdir()
        line = b" " * (2**24 + 1)
    path.write_bytes(lzma.compress(line * 8) if name.endswith(".xz") else line)
    assert path.stat().st_size < 50_000 or not name.endswith(".xz"), "a bomb is small"
    reader = {"export.jsonl": Recording, "facts.json": lambda _: FactStore(tmp_path).get(picture, backend)}
    with pytest.raises(ValueError, match="more than 2 MiB|got more|more than 16777216"):
        reader.get(name, utils.read_rows)(path)


def _without_a_layer(weights: dict[str, torch.Tensor]) -> None:
    weights.pop(next(name for name in weights if "layers.1." in name))


def _with_too_many_words(weights: dict[str, torch.Tensor]) -> None:
    weights.update({name: weight.repeat(2, 1) for name, weight in weights.items() if "embed_tokens" in name})


@pytest.mark.promise("bad input", "a model with weights that are missing, torn or of another size is refused, none left random")
@pytest.mark.parametrize(("fault", "said"), [(_without_a_layer, "got none for 1, .*layers.1"),
                                             (_with_too_many_words, "of the shapes that its config.json says"),
                                             ("torn", "cannot be read"), ("a header of 2^62 bytes", "cannot be read")])
def test_a_model_with_other_weights_is_refused(fault: Callable | str, said: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "bases" / "svlm-s0", tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    content, weights = file.read_bytes(), load_file(file)
    if fault == "torn":
        file.write_bytes(content[: len(content) // 2])
    elif isinstance(fault, str):
        file.write_bytes((2**62).to_bytes(8, "little") + content[8:])
    else:
        fault(weights)
        save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match=said) as caught:
        loading.load_policy(tmp_path / "model")
    assert str(tmp_path / "model") in str(caught.value) and "save it or download it again" in str(caught.value)


# --- Secrets ---------------------------------------------------------------------------------------------------------------


@pytest.mark.promise("security", "the API key is in no executed or failed notebook, manifest or error, though a cell shows it")
def test_the_key_is_in_nothing_that_a_notebook_leaves(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    caplog.set_level("DEBUG")
    (tmp_path / "notebooks").mkdir()
    show = "import os\nprint(os.environ['OPENAI_API_KEY'])\nos.environ['OPENAI_API_KEY']"
    for name, cell in {"01_shows": show, "02_fails": f"{show}\nraise ValueError(os.environ['OPENAI_API_KEY'])"}.items():
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("seed = 0", metadata={"tags": ["parameters"]}),
                                             nbformat.v4.new_code_cell(cell)])
        nbformat.write(nb, tmp_path / "notebooks" / f"{name}.ipynb")
    workspace = Workspace(config.Paths(tmp_path, "smoke"))
    with pytest.raises(NotebookError, match=r"02_fails failed.*\[api key\]") as caught:
        run_notebooks.run_jobs(workspace, run_notebooks.plan_jobs(workspace))
    written = [path for path in (tmp_path / "results").rglob("*") if path.is_file()]
    assert {path.name for path in written} >= {"01_shows.ipynb", "02_fails.failed.ipynb", "manifest.json"}
    assert [path for path in written if SECRET.encode() in path.read_bytes()] == []
    assert "[api key]" in workspace.target("01_shows").read_text()
    assert SECRET not in str(caught.value) and SECRET not in str(caught.value.__cause__)
    assert SECRET not in "".join(record.getMessage() for record in caplog.records if record.name.startswith("dyme_core"))


# --- Texts that become paths, commands or pages ----------------------------------------------------------------------------

HOSTILE = ("$(mkdir owned)", "`mkdir owned`", "; mkdir owned #", "| mkdir owned", "&& mkdir owned", "../../owned", "/owned",
           "'\"; mkdir owned; '", "%(x)s {0} {working} $HOME", r"\input{/etc/passwd}", r"\write18{mkdir owned}",
           "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "a | b | c", "[x](javascript:alert(1))",
           "![x](http://127.0.0.1:1/pixel.png)", "=cmd|' /C calc'!A0", "line\n\n| new | row |", "~/x", "$x^2_1$", "%comment",
           "-rf", "--help", "\\", "@SUM(1)", "-1+cmd|' /C calc'!A0")


@pytest.mark.promise("security", "shell, path and template text in questions, answers and facts stays text: it makes no file "
                                 "and no command")
@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_in_a_row_stays_text(text: str, tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Image.new("RGB", (20, 10)).save(folder / "1.png")
    fact = {"entity": text, "attribute": text, "value": 4, "unit": text}
    row = {"question": text, "answer": text, "image": "1.png", "facts": [fact], "id": "a"}
    (folder / "data.jsonl").write_text(json.dumps(row))
    [record] = own_records(folder)
    assert (record.question, record.answer) == (text.strip(), text.strip())
    before = sorted(tmp_path.rglob("*"))
    written = datasets.write_jsonl([record], folder / "again")
    made = {path.relative_to(folder).as_posix() for path in set(tmp_path.rglob("*")) - set(before)}
    assert made == {"again", "again/data.jsonl", "again/images", "again/images/a.png"}
    assert own_records(written)[0].question == record.question
    for item in (text, f"x{text}"):
        (folder / "data.jsonl").write_text(json.dumps(row | {"id": item}))
        if not item.strip().replace("-", "").isalnum() or item.startswith("-"):
            with pytest.raises(DataError, match="an id of"):
                own_records(folder)


@pytest.mark.promise("security", "text in tables stays text in Markdown, HTML, LaTeX and spreadsheets: no command, tag, link, "
                                 "formula or new cell")
@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_in_a_table_stays_in_its_cell(text: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({"Method": [text, "other"], "Seeds": [1, 2]})
    made = tables.write_table(frame, tmp_path, "name", "Caption.")
    lines = made["md"].read_text().splitlines()
    assert len(lines) == 6 and lines[4:] == ["", "Caption."]
    bare = lines[2].replace("\\\\", "").replace("\\|", "")
    assert bare.count("|") == 3 and "<" not in bare and "](" not in bare
    latex = made["tex"].read_text().splitlines()
    [line] = [line for line in latex if line.endswith(r"& 1 \\")]
    assert line == f"{tables.escape_latex(text)} & 1 \\\\"
    plain = line.removesuffix(r"& 1 \\")
    for command in (r"\textbackslash{}", r"\textasciitilde{}", r"\textasciicircum{}", r"\textless{}", r"\textgreater{}",
                    *(f"\\{mark}" for mark in "&%$#_{}")):
        plain = plain.replace(command, "")
    assert not set("\\&%$#_{}~^<>") & set(plain)
    cell = pd.read_csv(made["csv"], keep_default_na=False)["Method"][0]
    assert cell == (f"'{text}" if text[0] in "=+-@" else text), "no formula in a spreadsheet, every other text as it was"


@pytest.mark.parametrize("name", ["kind", "source"])
def test_hostile_text_cannot_enter_the_data_card(name: str, tmp_path: Path) -> None:
    for text in ("<script>alert(1)</script>", "a | b", "line\nnew", "`code`"):
        (tmp_path / "data.jsonl").write_text(json.dumps({"question": "Which?", "answer": "May", name: text}))
        with pytest.raises(DataError, match=f"a {name} of one line"):
            own_records(tmp_path)
