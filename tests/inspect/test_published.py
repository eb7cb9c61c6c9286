"""The figures that others published, from the configurations alone.

MACs: T-GATE's table in diffusers' documentation (optimization/tgate) counts 25 steps with guidance, that is 50 samples;
its counter leaves attention's two products out.
"""

from __future__ import annotations

import pytest

from hasten.inspect.building import build
from hasten.inspect.inspection import Component, Size, inspect_model
from hasten.inspect.sources import Part, find_source
from hasten.inspect.tables import image_macs

# parameters exactly; T MACs of 25 steps × 2 passes
DENOISERS = {
    "sd15": ("unet", 859_520_964, 16.938),
    "sdxl": ("unet", 2_567_463_684, 149.438),
    "pixart-alpha": ("transformer", 611_349_152, 107.031),
}


@pytest.fixture(scope="module", params=DENOISERS)
def denoiser(request: pytest.FixtureRequest) -> tuple[Component, int, float]:
    name, parameters, macs = DENOISERS[request.param]
    found = inspect_model(find_source(request.param), Size(steps=25, passes=2), [name])
    return found.components[0], parameters, macs


def test_parameters_are_exactly_as_published(denoiser: tuple[Component, int, float]) -> None:
    component, parameters, _ = denoiser
    assert component.root.parameters == parameters


def test_macs_agree_with_the_published_ones(denoiser: tuple[Component, int, float]) -> None:
    component, _, published = denoiser
    share = 1 - component.root.attention_macs / component.root.macs
    assert image_macs(component) * share / 1e12 == pytest.approx(published, rel=0.001)


@pytest.mark.parametrize(
    ("name", "component", "card"),
    [
        ("flux", "transformer", 11_901_408_320),
        ("qwen-image", "transformer", 20_430_401_088),
        ("hunyuanvideo-1.5", "transformer", 8.3e9),
        ("wan2.1", "transformer", 14_288_491_584),
        ("sd3", "transformer", 2_028_328_000),
        ("sdxl", "text_encoder_2", 694_659_840),
        ("sd15", "text_encoder", 123_060_480),
        ("sd15", "vae", 83_653_863),
        ("flux", "text_encoder_2", 4_762_310_656),
        ("qwen-image", "text_encoder", 8_292_166_656),
    ],
)
def test_known_architectures_have_the_parameters_of_their_cards(name: str, component: str, card: float) -> None:
    (part,) = (part for part in find_source(name).parts if part.name == component)
    parameters = {id(p): p.numel() for p in build(part).parameters()}
    assert sum(parameters.values()) == pytest.approx(card, rel=0.005 if card == 8.3e9 else 0.001)


def test_a_turbo_has_the_layers_of_its_base_and_another_use() -> None:
    base, turbo = find_source("sdxl"), find_source("sdxl-turbo")
    assert [part.config for part in turbo.parts] == [part.config for part in base.parts]
    assert (turbo.use.steps, turbo.use.passes, turbo.use.height) == (1, 1, 512)


def test_a_class_that_is_not_installed_is_named() -> None:
    with pytest.raises(Exception, match=r"diffusers .* has no NoSuchModel: upgrade diffusers"):
        build(Part("unet", "diffusers", "NoSuchModel", {}))
