"""What a stranger and a contributor read: short where it must be, linked to what is there, true
where it can be asked."""

import re
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from graft import params as parameters
from graft.description import FILES
from graft.network import backbones, classifier
from graft.serving import parity

ROOT = Path(__file__).parents[1]
LISTED = subprocess.run(
    ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
).stdout.split()
PAGES = [name for name in LISTED if (ROOT / name).is_file()]
CHECKS = ["make lint", "make test", "make test-slow"]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def anchors(text):
    """Of a page's headings, as GitHub makes them."""
    for line in re.sub(r"```.*?```", "", text, flags=re.DOTALL).splitlines():
        if match := re.match(r"#+ (.+)", line):
            yield re.sub(r"[^\w\- ]", "", match[1].lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_a_link_leads_to_what_is_there(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (ROOT / page).parent / path if path else ROOT / page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there.read_text(encoding="utf-8")), target


def test_readme_is_read_to_the_end():
    lines = read("README.md").splitlines()
    assert len(lines) < 150
    first = "\n".join(lines[:20])
    (block,) = re.findall(r"```sh\n(.*?)```", first, flags=re.DOTALL)
    assert [line.split("  ")[0] for line in block.splitlines()] == [
        "make run",
        ".venv/bin/graft check /home/me/photos",
    ]
    assert "](docs/card.png)" in first
    for part in (
        "Your own photos",
        "Sweep and compare",
        "Predict",
        "The five projects",
        "How good, how fast",
        "Limits",
        "Links",
    ):
        assert any(line.startswith(f"## {part}") for line in lines), part


def test_every_page_and_picture_of_docs_is_linked():
    texts = {page: read(page) for page in PAGES}
    for path in sorted((ROOT / "docs").iterdir()):
        name = path.name
        assert any(
            re.search(rf"\]\((docs/)?{re.escape(name)}[)#]", text) for text in texts.values()
        ), name


@pytest.mark.parametrize(
    "project",
    ["alpaca", "top_50_layers", "cifar10", "flowers_mobilenet_v2", "flowers_inception_v3"],
)
def test_each_of_the_five_projects_has_its_command_in_readme(project):
    assert f"dvc exp run $(graft preset {project})" in read("README.md")


# --- what a contributor is told ---


def touched(what):
    """The files that CONTRIBUTING lists for a change, such as "A backbone"."""
    (part,) = re.findall(
        rf"^\*\*{what}[^\n]*\n\n(.*?)(?=^\*\*|^## )",
        read("CONTRIBUTING.md"),
        flags=re.DOTALL | re.MULTILINE,
    )
    return re.findall(r"`([\w./-]+/[\w.-]+|\w+\.yaml)`", part)


@pytest.mark.parametrize(
    "what", ["A backbone", "An export format", "A plot", "A check", "A parameter", "A command"]
)
def test_files_that_a_change_touches_are_there(what):
    found = touched(what)
    assert len(found) > 1
    assert [name for name in found if not (ROOT / name).is_file()] == []
    assert any(name.startswith("tests/") for name in found)


def test_a_row_is_all_that_a_new_backbone_takes(monkeypatch):
    """NASNetMobile, which the table lacks."""
    import keras

    from graft.description import Description

    assert touched("A backbone") == [
        "graft/network/backbones.py",
        "tests/network/test_backbones.py",
    ]
    row = backbones._application("NASNetMobile", "NASNet-mobile-no-top", 224)
    monkeypatch.setitem(backbones.BACKBONES, "nasnet_mobile", row)
    given = parameters.load(ROOT / "params.yaml")
    block = given.backbone.model_copy(update={"name": "nasnet_mobile", "weights": "none"})
    backbones.check(given.model_copy(update={"backbone": block}))
    model = classifier.build(Description("nasnet_mobile", 1.0, 32, ("a", "b"), 0, 0.2, "crop"))
    assert isinstance(model, keras.Model) and model.output.shape == (None, 2)


def test_the_places_of_a_format_agree():
    listed = YAML(typ="safe").load(ROOT / "params.yaml")["export"]["formats"]
    # One takes the place of tflite_int8 where that is not good enough, the others are there for who
    # wants them.
    assert set(listed) == set(FILES) - {
        "tflite_dynamic",
        "onnx_any_size",
        "saved_model_any_size",
        "openvino",
        "coreml",
    }
    assert set(parity.EXACT) < set(FILES)
    for name in FILES.values():
        assert f"`{name}" in read("docs/models.md"), name


def test_the_same_checks_run_everywhere():
    workflow = YAML(typ="safe").load(ROOT / ".github" / "workflows" / "ci.yml")
    job = workflow["jobs"]["test"]
    assert [step["run"] for step in job["steps"] if "run" in step] == CHECKS
    hooks = YAML(typ="safe").load(ROOT / ".pre-commit-config.yaml")["repos"][0]["hooks"]
    assert [hook["entry"] for hook in hooks] == CHECKS
    assert read(".ci/run").splitlines()[-3:] == CHECKS
    low, high = re.search(r">=3\.(\d+),<3\.(\d+)", read("pyproject.toml")).groups()
    assert job["strategy"]["matrix"]["python"] == [f"3.{n}" for n in range(int(low), int(high))]


def test_the_changelog_tells_what_was_renamed():
    text = read("CHANGELOG.md")
    assert "## [Unreleased]" in text
    for old, new in parameters.RENAMED.items():
        assert f"| `{old}` | `{new}` |" in text


def test_licence_and_version_are_the_same_wherever_they_stand():
    text = read("LICENSE")
    assert (
        "Apache License" in text
        and "END OF TERMS AND CONDITIONS" in text
        and len(text.split()) > 1500
    )
    project, citation = read("pyproject.toml"), YAML(typ="safe").load(ROOT / "CITATION.cff")
    for key in ("license", "version"):
        assert re.search(rf'^{key} = "(.+)"$', project, flags=re.MULTILINE)[1] == str(citation[key])
    assert citation["license"] == "Apache-2.0"
