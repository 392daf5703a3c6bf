"""A folder of images, from export to an agent that is sent a photo."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path

import httpx
import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner
from PIL import Image

from calibration.model_file import load_model, save_model
from host_tools.cli import cli
from tests.agents import make_config, running_agent
from tests.calibration.nets import conv_net
from tests.calibration.test_image_samples import write_images
from tests.host_tools.commands import invoke


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle that was calibrated and tested on images."""
    folder = tmp_path_factory.mktemp("images")
    save_model(conv_net(), folder / "raw.onnx")
    write_images(folder / "photos", [str(n) for n in range(5)], 20)
    steps = [
        ["export", "raw.onnx", "--image", "inception,fit=crop,edge=10", "--out", "net.onnx"],
        ["calibrate", "net.onnx", "--data", "photos", "--max-top1-drop", "100"],
        ["pack", "net.onnx", "--int8", "net.int8.onnx", "--golden", "photos",
         "--name", "net", "--out", "bundle"],
    ]  # fmt: skip
    for step in steps:
        words = [str(folder / w) if "." in w or w in {"photos", "bundle"} else w for w in step]
        words = [w.replace(f"{folder}/inception", "inception") for w in words]
        result = invoke(*words)
        assert result.exit_code == 0, result.output
    return folder


def photo(seed: int) -> tuple[bytes, np.ndarray]:
    """Return an encoded image and, made by other means, the row that the model must see."""
    pixels = np.random.default_rng(seed).integers(0, 256, (10, 14, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    centre = pixels[1:9, 3:11].astype(np.float64) / 255
    return content.getvalue(), ((centre - 0.5) / 0.5).transpose(2, 0, 1).astype(np.float32)


def test_the_evidence_counts_labels_from_the_folders(bundle: Path) -> None:
    accuracy = json.loads(invoke("inspect", bundle / "bundle", "--json").output)["models"][0]
    assert accuracy["accuracy"]["labelled"] is True
    assert accuracy["image"]["edge"] == 10
    assert "images: RGB, shorter side to 10" in invoke("inspect", bundle / "bundle").output


def test_a_model_without_steps_is_told_how_to_get_them(bundle: Path) -> None:
    result = CliRunner().invoke(
        cli, ["calibrate", str(bundle / "raw.onnx"), "--data", str(bundle / "photos")]
    )
    assert "export it again with --image" in str(result.exception)


def test_a_model_that_is_exported_again_keeps_its_steps(bundle: Path) -> None:
    result = invoke("export", bundle / "net.onnx", "--out", bundle / "again.onnx")
    assert "images: RGB, shorter side to 10" in result.output
    props = {p.key: p.value for p in load_model(bundle / "again.onnx").metadata_props}
    assert "edge_kit.image" in props


def test_an_agent_answers_a_photo_as_the_model_answers_its_pixels(
    bundle: Path, tmp_path: Path
) -> None:
    config = make_config(
        tmp_path, bundle=bundle / "bundle", allow_unsigned=True, variant="ort-fp32"
    )
    session = onnxruntime.InferenceSession(bundle / "net.onnx")
    contents, rows = zip(*(photo(seed) for seed in range(3)), strict=True)
    expected = session.run(None, {"x": np.stack(rows)})[0]
    with running_agent(config) as agent:
        url = f"{agent.url}/predict/net"
        one = httpx.post(url, content=contents[0], headers={"Content-Type": "image/png"}).json()
        np.testing.assert_allclose(one["outputs"][0]["data"], expected[0], rtol=1e-4, atol=1e-5)
        files = [("image", (f"{n}.png", c, "image/png")) for n, c in enumerate(contents)]
        three = httpx.post(url, files=files).json()["outputs"][0]
        assert three["shape"] == [3, 5]
        np.testing.assert_allclose(three["data"], expected.ravel(), rtol=1e-4, atol=1e-5)
        path = tmp_path / "photo.png"
        path.write_bytes(contents[1])
        words = ["curl", "-s", "-F", f"image=@{path}", url]
        by_curl = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
        np.testing.assert_allclose(by_curl["outputs"][0]["data"], expected[1], rtol=1e-4, atol=1e-5)
        for bad, status, said in (
            ({"content": b""}, 400, "holds no image"),
            ({"content": contents[0][:50]}, 400, "damaged"),
            ({"files": {"photo": b"x"}}, 400, "form field 'image'"),
            ({"files": files * 100}, 400, "300 on axis 0"),
        ):
            answer = httpx.post(url, **bad)
            assert (answer.status_code, said in answer.json()["error"]) == (status, True)
        assert httpx.get(url).status_code == 405
        assert httpx.post(url.replace("net", "other"), content=b"x").status_code == 404


def test_a_classifier_with_names_answers_with_them(bundle: Path, tmp_path: Path) -> None:
    names = ["cat", "dog", "fish", "bird", "none of these"]
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
    words = ["pack", bundle / "net.onnx", "--golden", bundle / "photos", "--name", "net"]
    result = invoke(*words, "--class-names", tmp_path / "names.txt", "--out", tmp_path / "named")
    assert result.exit_code == 0, result.output
    content, row = photo(7)
    scores = onnxruntime.InferenceSession(bundle / "net.onnx").run(None, {"x": row[None]})[0][0]
    config = make_config(tmp_path, bundle=tmp_path / "named", allow_unsigned=True)
    with running_agent(config) as agent:
        answer = httpx.post(f"{agent.url}/predict/net", content=content).json()
    (found,) = answer["predictions"]
    assert [guess["label"] for guess in found] == [names[n] for n in np.argsort(-scores)]
    assert sum(guess["score"] for guess in found) == pytest.approx(1.0)
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    wrong = CliRunner().invoke(
        cli, [str(w) for w in (*words, "--class-names", tmp_path / "names.txt", "--out", "x")]
    )
    assert "2 labels for an output of" in str(wrong.exception)
    assert not Path("x").exists()
