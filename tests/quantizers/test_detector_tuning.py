"""Training a quantized detector towards its float model: on a whole YOLOv10, random and narrow, with three-bit weights."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("brevitas")


from fewbits.core.errors import BackendError, SpecError  # noqa: E402
from fewbits.quantizers.brevitas import layers as brevitas_layers  # noqa: E402
from fewbits.quantizers.brevitas import tuning  # noqa: E402
from fewbits.quantizers.brevitas.augmentation import GREY, augmented  # noqa: E402
from fewbits.quantizers.brevitas.checkpoint import read_checkpoint  # noqa: E402
from fewbits.quantizers.brevitas.fitting import Fitting, fit_layers  # noqa: E402
from fewbits.quantizers.brevitas.layers import ActivationQuantizer, LayerPlan, WeightQuantizer  # noqa: E402
from fewbits.quantizers.brevitas.library_methods import collect_activation_statistics, quiet_brevitas  # noqa: E402
from fewbits.quantizers.brevitas.samples import Sampling, record_float_inputs  # noqa: E402
from fewbits.quantizers.brevitas.tuned_layers import fused, input_range, tuned_layers  # noqa: E402
from fewbits.quantizers.brevitas.tuning import TuningSettings, tune  # noqa: E402
from fewbits.quantizers.brevitas.tuning_loss import Observation, distillation_loss, head_inputs, observe  # noqa: E402
from fewbits.quantizers.brevitas.yolov10 import build_yolov10, convolutions, fold_batch_norms, layer_roles  # noqa: E402
from fewbits.records.detector_quant import LayerRole, Step  # noqa: E402
from quantizers.yolov10_samples import write_checkpoint  # noqa: E402

SIDE = 64
QUICK = TuningSettings(epochs=1, learning_rate=0.005, scale_learning_rate=0.002)
TWO_EPOCHS = TuningSettings(epochs=2, batch_images=4, learning_rate=0.005, scale_learning_rate=0.002)
UNSIGNED = ActivationQuantizer.UNSIGNED


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads cost more than they bring on models this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Any:
    model = build_yolov10(read_checkpoint(write_checkpoint(tmp_path_factory.mktemp("tuning") / "tiny.pt")), image_size=SIDE)
    fold_batch_norms(model)
    return model


def pictures(count: int = 12) -> Any:
    """Smooth random images: neighbouring pixels are alike, as in photographs."""
    noise = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    return torch.nn.functional.interpolate(noise, size=(SIDE, SIDE), mode="bilinear")


def quantized(teacher: Any, activations: ActivationQuantizer = UNSIGNED) -> Any:
    """A copy of the teacher with three-bit weights, fitted on a few images."""
    model = copy.deepcopy(teacher)
    found = convolutions(model)
    plans = dict.fromkeys(found, LayerPlan(3, WeightQuantizer.PER_CHANNEL, activations))
    sampling = Sampling(samples=192)
    floats = record_float_inputs(model, found, pictures(4), sampling)
    layers = brevitas_layers.quantize_layers(model, plans)
    with quiet_brevitas():
        if activations is ActivationQuantizer.SIGNED:
            collect_activation_statistics(model, pictures(4))
        fit_layers(model, layers, Fitting(plans, (Step.UNSIGNED, Step.PER_CHANNEL, Step.BIAS), sampling), pictures(4), floats)
    return model


@pytest.fixture(scope="module")
def pupil(teacher: Any) -> Any:
    return quantized(teacher)


def brevitas(model: Any, teacher: Any) -> dict[str, Any]:
    return {name: model.get_submodule(name) for name in convolutions(teacher)}


def distance(model: Any, teacher: Any, images: Any) -> float:
    readers = head_inputs(teacher)
    with torch.no_grad(), quiet_brevitas():
        seen = observe(model, readers, images), observe(teacher, readers, images)
        return float(distillation_loss(*seen, teacher.model[-1].point_strides))


def state(model: Any) -> dict[str, Any]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def silent(_message: str) -> None:
    pass


def test_training_brings_the_model_closer_to_its_teacher_on_images_that_it_never_saw(teacher: Any, pupil: Any) -> None:
    model = copy.deepcopy(pupil)
    messages: list[str] = []
    fresh = pictures(20)[12:]
    before = distance(model, teacher, fresh)
    history = tune(model, teacher, pictures(), TWO_EPOCHS, messages.append)
    assert distance(model, teacher, fresh) < 0.8 * before
    assert not history.collapsed
    assert history.best_epoch == 2
    assert (history.epochs[-1].held_out_loss or math.inf) < 0.8 * history.starting_loss
    assert (history.images, history.held_out_images, history.steps) == (11, 1, 6)
    assert history.seconds > 0
    assert len(messages) == 2
    assert messages[0].startswith("epoch 1 of 2: loss ")


def test_codes_stay_codes_and_zero_points_stay(teacher: Any, pupil: Any) -> None:
    model = copy.deepcopy(pupil)
    before = {name: input_range(layer) for name, layer in brevitas(pupil, teacher).items()}
    tune(model, teacher, pictures(), QUICK, silent)
    moved_scales = 0
    for name, layer in brevitas(model, teacher).items():
        codes = brevitas_layers.quantized_weight(layer) / brevitas_layers.scales(layer)[:, None, None, None]
        assert float((codes - codes.round()).abs().max()) < 1e-4
        assert float(codes.abs().max()) < 3.001
        seen = layer.input_quant(torch.rand(1, layer.in_channels, 2, 2))
        old, new = before[name], input_range(layer)
        assert old is not None
        assert new is not None
        assert int(seen.zero_point) == old.zero_point == new.zero_point
        moved_scales += not torch.equal(new.scale, old.scale)
    assert moved_scales > len(before) / 2


def test_the_projection_stays_and_everything_else_learns(teacher: Any, pupil: Any) -> None:
    model = copy.deepcopy(pupil)
    tune(model, teacher, pictures(), QUICK, silent)
    roles = layer_roles(teacher)
    for name, layer in brevitas(model, teacher).items():
        was = pupil.get_submodule(name)
        assert torch.equal(layer.weight, was.weight) == (roles[name] is LayerRole.DISTRIBUTION), name
        assert layer.bias is None or not torch.equal(layer.bias, was.bias)


def test_the_model_comes_back_as_brevitas_made_it(teacher: Any, pupil: Any) -> None:
    model = copy.deepcopy(pupil)
    model.requires_grad_(requires_grad=True)
    tune(model, teacher, pictures(), QUICK, silent)
    for layer in brevitas(model, teacher).values():
        assert "forward" not in vars(layer)
        assert not layer._forward_pre_hooks
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert [module.training for module in model.modules()] == [module.training for module in pupil.modules()]
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_same_seed_gives_the_same_model_and_no_global_state_moves(teacher: Any, pupil: Any) -> None:
    first, second, other = copy.deepcopy(pupil), copy.deepcopy(pupil), copy.deepcopy(pupil)
    random_state, threads, kept = torch.get_rng_state(), torch.get_num_threads(), state(teacher)
    one = tune(first, teacher, pictures(), QUICK, silent)
    torch.rand(3)
    torch.set_rng_state(random_state)
    two = tune(second, teacher, pictures(), QUICK, silent)
    assert one.epochs == two.epochs
    assert same(state(first), state(second))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()
    assert same(state(teacher), kept)
    tune(other, teacher, pictures(), msgspec.structs.replace(QUICK, seed=1), silent)
    assert not same(state(first), state(other))


def test_bytes_and_floats_are_the_same_images(teacher: Any, pupil: Any) -> None:
    whole = (pictures(6) * 255).round()
    first, second = copy.deepcopy(pupil), copy.deepcopy(pupil)
    tune(first, teacher, whole.to(torch.uint8), QUICK, silent)
    tune(second, teacher, whole / 255, QUICK, silent)
    assert same(state(first), state(second))


def test_a_wild_rate_collapses_and_changes_nothing(teacher: Any, pupil: Any) -> None:
    model = copy.deepcopy(pupil)
    history = tune(model, teacher, pictures(), TuningSettings(epochs=2, learning_rate=1, scale_learning_rate=1), silent)
    assert history.collapsed
    assert history.best_epoch is None
    last = history.epochs[-1].held_out_loss
    assert last is None or last > history.starting_loss
    assert same(state(model), state(pupil))


def test_a_loss_that_is_no_number_ends_training_and_changes_nothing(
    teacher: Any, pupil: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[None] = []

    def poisoned(*arguments: Any) -> Any:
        seen.append(None)
        return distillation_loss(*arguments) * (math.nan if len(seen) == 4 else 1)

    monkeypatch.setattr(tuning, "distillation_loss", poisoned)
    model = copy.deepcopy(pupil)
    history = tune(model, teacher, pictures(), TuningSettings(epochs=3), silent)
    assert history.collapsed
    assert (history.best_epoch, history.steps) == (None, 2)
    assert [(epoch.train_loss, epoch.held_out_loss) for epoch in history.epochs] == [(None, None)]
    assert same(state(model), state(pupil))


def test_an_interruption_changes_nothing(teacher: Any, pupil: Any) -> None:
    def interrupt(_message: str) -> None:
        raise KeyboardInterrupt

    model = copy.deepcopy(pupil)
    with pytest.raises(KeyboardInterrupt):
        tune(model, teacher, pictures(), QUICK, interrupt)
    assert same(state(model), state(pupil))
    assert not any("forward" in vars(layer) for layer in brevitas(model, teacher).values())


def test_a_model_that_gives_no_numbers_is_refused(teacher: Any, pupil: Any) -> None:
    model = copy.deepcopy(pupil)
    next(iter(brevitas(model, teacher).values())).bias.data.fill_(math.nan)
    with pytest.raises(BackendError, match="before any training"):
        tune(model, teacher, pictures(), QUICK, silent)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(4, 3, 32, 32), "is not"),
        (torch.zeros(4, 1, SIDE, SIDE), "is not"),
        (torch.zeros(3, SIDE, SIDE), "is not"),
        (torch.zeros(1, 3, SIDE, SIDE), "cannot be divided"),
        (torch.zeros(0, 3, SIDE, SIDE), "cannot be divided"),
        (torch.zeros(4, 3, SIDE, SIDE, dtype=torch.float64), "float64"),
        (torch.zeros(4, 3, SIDE, SIDE, dtype=torch.int64), "int64"),
    ],
)
def test_images_that_cannot_be_used_are_refused(teacher: Any, pupil: Any, images: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        tune(pupil, teacher, images, QUICK, silent)


@pytest.mark.parametrize("activations", [ActivationQuantizer.NONE, ActivationQuantizer.SIGNED])
def test_layers_with_float_or_signed_inputs_are_trained_too(teacher: Any, activations: ActivationQuantizer) -> None:
    model = quantized(teacher, activations)
    start = state(model)
    history = tune(model, teacher, pictures(), QUICK, silent)
    assert not history.collapsed
    assert (history.epochs[-1].held_out_loss or math.inf) < history.starting_loss
    assert not same(state(model), start)


def test_fewer_passes_give_the_same_output(teacher: Any, pupil: Any) -> None:
    with torch.no_grad():
        with quiet_brevitas():
            slow = pupil(pictures(2))
        with fused(brevitas(pupil, teacher)):
            fast = pupil(pictures(2))
    assert torch.allclose(slow, fast, atol=1e-4)


@pytest.mark.parametrize("zero_point", [0, 31, 255])
def test_fewer_passes_give_the_same_gradients(zero_point: int) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2))
    layer = brevitas_layers.quantize_layers(model, {"0": LayerPlan(4, WeightQuantizer.PER_CHANNEL, UNSIGNED)})["0"]
    brevitas_layers.set_activation_range(layer, brevitas_layers.ActivationRange(0.0137, zero_point))
    values = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(zero_point)) * 2
    found = []
    for context in (quiet_brevitas(), fused({"0": layer})):
        model.zero_grad()
        inputs = values.clone().requires_grad_(True)
        with context:
            layer(inputs).square().sum().backward()
        found.append({**{name: value.grad for name, value in layer.named_parameters()}, "inputs": inputs.grad})
    slow, fast = found
    (scale,) = (name for name in slow if name.startswith("input_quant") and name.endswith("scaling_impl.value"))
    (offset,) = (name for name in slow if name.endswith("zero_point_impl.value"))
    # the code of zero is held, so the offset moves with the scale
    slow[scale] = slow[scale] + slow.pop(offset) * zero_point / 255
    for name, gradient in slow.items():
        assert torch.allclose(fast[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max())), name


def test_the_scale_of_an_input_gets_the_slope_of_the_loss() -> None:
    """Against the difference quotient, where every value lies between two codes and some lie outside of the range."""
    layer = torch.nn.Sequential(torch.nn.Conv2d(2, 2, 1))
    plan = LayerPlan(8, WeightQuantizer.PER_CHANNEL, UNSIGNED)
    brevitas_layers.quantize_layers(layer, {"0": plan})
    brevitas_layers.set_activation_range(layer[0], brevitas_layers.ActivationRange(0.01, 100))
    codes = torch.tensor([-30, -100, 154, 0, 7, 200, -130, 300]).reshape(1, 2, 2, 2)
    values = (codes + 0.3) * 0.01
    with fused({"0": layer[0]}), torch.no_grad():
        outputs = []
        for change in (1, 1.0001):
            layer[0].input_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl.value.data.fill_(2.55 * change)
            outputs.append(layer(values).sum() - layer[0].bias.sum() * 4)
    assert float(outputs[1] / outputs[0]) == pytest.approx(1.0001, rel=1e-5)


def test_numbers_that_training_moves_come_back_exactly(teacher: Any, pupil: Any) -> None:
    model = copy.deepcopy(pupil)
    tuned = tuned_layers(brevitas(model, teacher))
    kept = tuned.snapshot()
    for handle in tuned.handles:
        handle.shares.data.mul_(1.1)
    tuned.write_back()
    assert not same(state(model), state(pupil))
    tuned.restore(kept)
    assert same(state(model), state(pupil))


@dataclasses.dataclass(frozen=True)
class Said:
    """An observation of one image with four points, two of them objects."""

    boxes: float = 0.0
    sure: float = 0.9
    maps: float = 0.0

    def observation(self) -> Observation:
        probabilities = torch.tensor([[self.sure, 1e-4, 0.3, 1e-4], [0.01, 1e-4, 0.02, 1e-4]])
        boxes = torch.full((4, 4), 10.0) + self.boxes
        level = torch.linspace(0, 1, 32).reshape(1, 2, 4, 4) + self.maps
        return Observation(torch.cat([boxes, probabilities])[None], (level,))


STRIDES = torch.tensor([[8.0, 8.0, 16.0, 32.0]])


def test_a_model_that_says_the_same_costs_nothing() -> None:
    assert float(distillation_loss(Said().observation(), Said().observation(), STRIDES)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("field", ["boxes", "sure", "maps"])
def test_every_term_grows_with_the_distance(field: str) -> None:
    said = Said()
    near, far = (dataclasses.replace(said, **{field: getattr(said, field) - change}).observation() for change in (0.1, 0.4))
    losses = [float(distillation_loss(one, said.observation(), STRIDES)) for one in (near, far)]
    assert 0 < losses[0] < losses[1]


def test_a_box_counts_by_how_sure_the_teacher_is_of_it() -> None:
    def cost(point: int) -> float:
        seen = Said().observation()
        output = seen.output.clone()
        output[:, :4, point] += 1
        return float(distillation_loss(Observation(output, seen.maps), Said().observation(), torch.full((1, 4), 8.0)))

    assert cost(0) > 2 * cost(2) > 100 * cost(1)


def test_an_object_that_only_the_pupil_sees_costs_as_much_as_one_that_it_misses() -> None:
    quiet, loud = Said(sure=1e-4).observation(), Said().observation()
    invented, missed = (float(distillation_loss(*pair, STRIDES)) for pair in ((loud, quiet), (quiet, loud)))
    assert invented > 0.2 * missed


def test_certainty_beyond_the_clamp_stays_finite() -> None:
    never, always = Said(sure=0.0).observation(), Said(sure=1.0).observation()
    assert math.isfinite(float(distillation_loss(never, always, STRIDES)))
    assert math.isfinite(float(distillation_loss(always, never, STRIDES)))


def test_augmented_images_are_seeded_in_range_and_each_its_own() -> None:
    images = pictures(4)
    once, again, other = (augmented(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert once.shape == images.shape
    assert float(once.min()) >= 0
    assert float(once.max()) <= 1
    same_picture = augmented(images[:1].expand(4, -1, -1, -1).clone(), torch.Generator().manual_seed(1))
    assert len({tuple(picture.flatten()[::97].tolist()) for picture in same_picture}) == 4


def test_what_lies_outside_of_an_image_is_the_letterbox_grey() -> None:
    grey = torch.full((8, 3, SIDE, SIDE), GREY)
    found = augmented(grey, torch.Generator().manual_seed(0))
    assert float((found.amax((1, 2, 3)) - found.amin((1, 2, 3))).max()) < 1e-6


def test_rates_rise_then_fall_to_nothing() -> None:
    shares = [tuning._rate_share(step, 20, 0.2) for step in range(20)]
    assert shares[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert all(later < earlier for earlier, later in itertools.pairwise(shares[4:]))
    assert 0 < shares[-1] < 0.05
    assert max(tuning._rate_share(step, 3, 0) for step in range(3)) <= 1
