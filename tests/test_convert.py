"""A conversion is checked before the work and before it gets its name, and takes no other's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from safetensors.torch import save_file

from sgm import UserError, convert_weights
from sgm.config import ConfigError, load_config
from sgm.formats.files import write_tensors
from sgm.weights import WeightsError
from tests.small_model import made_up, state_of, write_config, write_empty


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The YAML and the weights of a small model."""
    folder = tmp_path_factory.mktemp("small")
    config = write_config(folder / "small.yaml")
    save_file(state_of(made_up(config)), folder / "small.safetensors")
    return config, folder / "small.safetensors"


@pytest.mark.parametrize("to", ["sgm", "diffusers"])
def test_what_another_process_writes_meanwhile_is_kept(small: tuple[Path, Path], to: str, tmp_path: Path) -> None:
    config, source = small
    target = tmp_path / "new.safetensors"

    def another(share: float) -> None:
        target.write_text("mine")

    with pytest.raises(UserError, match=r"new.safetensors exists already: give a new name"):
        convert_weights(source, target, to, config=config, on_progress=another)
    assert [path.name for path in tmp_path.iterdir()] == ["new.safetensors"]
    assert target.read_text() == "mine"


def test_what_was_written_is_read_again_before_it_gets_its_name(
    small: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, source = small

    def lossy(path: Path, *args) -> None:  # as a disk that loses what it was given
        write_tensors(path, *args)
        os.truncate(path, path.stat().st_size - 8)

    monkeypatch.setattr("sgm.convert.write_tensors", lossy)
    with pytest.raises(
        UserError, match=r"new.safetensors was not made: what was written cannot be read again .*cut short"
    ):
        convert_weights(source, tmp_path / "new.safetensors", config=config)
    assert not list(tmp_path.iterdir())


def test_a_source_that_shrinks_is_not_called_an_unwritable_target(small: tuple[Path, Path], tmp_path: Path) -> None:
    config, whole = small
    source, target = tmp_path / "source.safetensors", tmp_path / "out" / "new.safetensors"
    source.write_bytes(whole.read_bytes())
    with pytest.raises(WeightsError, match=r"source.safetensors ended while"):
        convert_weights(source, target, config=config, on_progress=lambda share: os.truncate(source, 10**5))
    assert not list(target.parent.iterdir())


def test_what_is_known_beforehand_is_said_before_any_value_is_read(small: tuple[Path, Path], tmp_path: Path) -> None:
    config, source = small
    out = tmp_path / "new.safetensors"
    (tmp_path / "dead.safetensors").symlink_to("gone")
    (tmp_path / "file").touch()
    lora = write_empty(tmp_path / "lora", {f"lora_unet_{i}.alpha": () for i in range(4)})
    text = {"model.diffusion_model.input_blocks.1.0.in_layers.0.weight": (8,), "cond_stage_model.logit_scale": ()}
    left = sorted(path.name for path in tmp_path.iterdir())
    for said, given, target, choices in (
        ("dead.safetensors exists already", source, tmp_path / "dead.safetensors", {}),
        ("file is a file. Choose another place", source, tmp_path / "file" / "a.safetensors", {}),
        ("cannot be used .File name too long.", source, tmp_path / f"{'x' * 300}.safetensors", {}),
        ("both say what model it is: give one of them", source, out, {"version": "svd"}),
        ("is a whole model, which takes nothing from a base", source, out, {"base": source}),
        ("lora is a LoRA", lora, out, {"config": None}),
        ("An empty path is given", "", out, {}),
    ):
        with pytest.raises(UserError, match=said):
            convert_weights(given, target, **{"config": config, "on_progress": pytest.fail, **choices})
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    text_model = write_empty(tmp_path / "text", text)
    with pytest.raises(WeightsError, match="is a model that is told what to draw by text"):
        convert_weights(text_model, out)


def test_a_yaml_that_diffusers_has_no_words_for_is_said(small: tuple[Path, Path], tmp_path: Path) -> None:
    config, source = small
    model = load_config(config)["model"]
    del model["params"]["network_config"]["params"]["transformer_depth"]  # its default serves the model
    path = tmp_path / "short.yaml"
    OmegaConf.save(OmegaConf.create({"model": model}), path)
    with pytest.raises(ConfigError, match=r"short.yaml: the key 'transformer_depth' is missing"):
        convert_weights(source, tmp_path / "new", "diffusers", config=path)
