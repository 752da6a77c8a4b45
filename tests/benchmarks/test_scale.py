"""What `benchmarks.scale` counts: FLOPs, memory and collectives of a step without values, against real steps."""
import re

import pytest
import torch
from accelerate.state import AcceleratorState
from torch.utils._pytree import tree_leaves

from benchmarks.scale import (
    BACKWARD_SHARE,
    GPUS,
    Cost,
    Layout,
    Meter,
    create_run,
    main,
    pace,
    step_cost,
    traffic,
    write_grey,
)
from benchmarks.scale_check import take_step
from timm_longtail.training.accelerator import create_accelerator

from ..support.ddp import run_distributed
from ..support.runs import SMALL, make_run

# with 2.9 operators of a step get tensors with values among the fake ones; those between were not tried
pytestmark = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split('.')[:2])) < (2, 14), reason='fake tensors of this torch')

SHORT = ['--model', 'resnet10t', '--img-size', '64']
COST = Cost(
    images=32, views=96, decoded=32, weights=100, buffers=4, optimizer=90, ema=0, gradients=10**9, buckets=90,
    step=1000, loss=10, flops=10**12, collectives=[('gather', 8 * 10**6), ('scatter', 8 * 10**6)])


def first_batches(run):
    """Return the first batch of each stream."""
    run.start_epoch(2)
    return [next(iter(loader)) for loader in run.loaders]


@pytest.fixture(scope='module')
def photo_cost(tmp_path_factory):
    """Return the cost of the recipe on some processes, with a small network on small images."""
    folder = write_grey(tmp_path_factory.mktemp('grey'))

    def cost(world_size: int, precision: str, *options: str) -> Cost:
        AcceleratorState._reset_state(reset_partial_state=False)
        options = [*SHORT, *options]
        run = create_run(create_accelerator('no'), 'bcl_resnet50.imagenet_lt', folder, world_size, options)
        return step_cost(run, world_size, precision)
    return cost


def test_the_meter_sees_what_lives():
    with Meter() as meter:
        x = torch.zeros(1000)
        y = (x + 1).view(10, 100)[0]  # holds all of its memory
        assert meter.held == 8000
        del x
        assert meter.held == 4000
        del y
    assert (meter.held, meter.peak) == (0, 8000)


@pytest.mark.parametrize('method', ['ce', 'bcl', 'glmc', 'rais'])
def test_a_step_without_values_holds_what_a_real_one_holds(method):
    contiguous = [*SMALL, '--no-channels-last']  # as on a GPU
    _, run = make_run(method, *contiguous)
    batches = first_batches(run)
    take_step(run, batches)  # the optimizer has its state
    states = [state for optimizer in run.optimizers for state in optimizer.state_dict()['state'].values()]
    with Meter() as meter:
        for tensor in tree_leaves([run.method.state_dict(), states]):
            meter.add(tensor)
        before = meter.held
        for tensor in tree_leaves(batches):
            meter.add(tensor)
        take_step(run, batches)

    _, run = make_run(method, *contiguous)
    run.start_epoch(2)
    cost = step_cost(run, 1, 'no')
    assert cost.step == pytest.approx(meter.peak - before, rel=0.05)
    assert cost.decoded == sum(len(target) for _, target, _ in batches)
    assert cost.weights == sum(t.nbytes for t in (*run.method.parameters(), *run.method.buffers()))


def real_collectives(rank: int, method: str) -> list[tuple[str, int]]:
    """Return the collectives of a step of two gloo processes."""
    _, run = make_run(method, *SMALL)
    batches = first_batches(run)
    with Meter() as meter:
        run.method(*batches)['loss'].backward()
    return meter.collectives


@pytest.mark.ddp
@pytest.mark.parametrize('method', ['bcl', 'sup_con', 'class_balanced'])
def test_collectives_are_those_of_real_processes(method):
    first, second = run_distributed(real_collectives, method)
    _, run = make_run(method, *SMALL)
    run.start_epoch(2)
    cost = step_cost(run, 2, 'no')
    assert cost.collectives == first == second != []


def test_a_ring_sends_what_the_formula_says():
    """Rank 0 passes on one part of W in each of W - 1 rounds, twice for a sum."""
    for world_size in (2, 8):
        part = COST.gradients / world_size
        rounds = [part for _ in range(world_size - 1)]
        assert traffic(COST, world_size).gradients == pytest.approx(sum(rounds + rounds))

        part = 8 * 10**6 / world_size
        assert traffic(COST, world_size).gathered == pytest.approx(2 * part * (world_size - 1))
    assert traffic(COST, 1).total == 0


def test_the_network_hides_behind_the_backward_pass_or_holds_up():
    layout, flops = Layout(4, 2), 10e12
    needed = pace(COST, layout, GPUS['A100'], flops, 1e9, 1, 10**6).link
    others = traffic(COST, 8).total - traffic(COST, 8).gradients

    fitting = pace(COST, layout, GPUS['A100'], flops, needed, 1, 10**6)
    assert fitting.compute == 0.1
    assert fitting.exposed == pytest.approx(others / needed)

    # half of it: the gradients need the time of the backward pass once more
    half = pace(COST, layout, GPUS['A100'], flops, needed / 2, 1, 10**6)
    assert half.exposed == pytest.approx(BACKWARD_SHARE * 0.1 + 2 * others / needed)
    assert half.hours == pytest.approx(10**6 // 256 * (0.1 + half.exposed) / 3600)
    assert half.images_per_s == pytest.approx(256 / (0.1 + half.exposed))

    # one host has NVLink
    assert pace(COST, Layout(1, 8), GPUS['A100'], flops, 1.0, 1, 10**6).exposed < 0.01


def test_a_recipe_on_some_gpus(photo_cost):
    four, eight = photo_cost(4, 'no'), photo_cost(8, 'no')
    assert (four.images, four.views, eight.images, eight.views) == (64, 192, 32, 96)
    assert four.weights == eight.weights
    assert eight.buckets == eight.gradients == eight.weights - eight.buffers == eight.optimizer

    # the rows of the whole batch, in any case: two views of 256 images, 128 wide, and their classes
    rows, labels = 512 * 128 * 4, 512 * 8
    assert four.collectives == eight.collectives == [('gather', rows), ('gather', labels), ('scatter', rows)]

    # half the images: more than half of the memory and of the work, since the loss is that of the whole batch
    assert 0.5 < eight.flops / four.flops < 1
    assert 0.5 < eight.step / four.step < 1


def test_options_of_training_are_taken(photo_cost):
    plain, averaged = photo_cost(4, 'no'), photo_cost(4, 'bf16', '--model-ema')
    assert plain.ema == 0 < averaged.ema < averaged.weights  # of the model, without what the method adds
    checkpointed = photo_cost(4, 'bf16', '--grad-checkpointing')
    assert checkpointed.step < 0.95 * averaged.step and checkpointed.flops > averaged.flops


def test_an_accumulated_batch_is_held_a_part_at_a_time(photo_cost):
    """The contrast is that of a micro-batch: fewer gathered rows each time, and as many of them together."""
    whole, parts = photo_cost(4, 'no'), photo_cost(4, 'no', '--grad-accum-steps', '4')
    assert (parts.images, parts.views) == (whole.images, whole.views) == (64, 192)
    assert parts.step < 0.5 * whole.step
    # each part passes the classes through the projection once more, and compares with fewer rows
    assert parts.flops == pytest.approx(whole.flops, rel=0.1)

    rows, labels = 128 * 128 * 4, 128 * 8  # two views of 64 of the 256 images, 128 wide, and their classes
    assert parts.collectives == 4 * [('gather', rows), ('gather', labels), ('scatter', rows)]
    assert parts.gradients == whole.gradients


def test_a_batch_of_each_process_fits_every_layout(capsys):
    AcceleratorState._reset_state(reset_partial_state=False)
    options = ['--layouts', '1x4', '--core-rate', '50', '--batch-size', '6', *SHORT]
    main(['--recipes', 'bcl_resnet50.imagenet_lt', *options])
    printed = capsys.readouterr()
    assert not printed.err
    assert '| 6 (18) |' in printed.out


def test_tables(capsys):
    AcceleratorState._reset_state(reset_partial_state=False)
    main(['--recipes', 'bcl_resnet50.imagenet_lt', '--layouts', '1x8', '4x3', '--core-rate', '50', *SHORT])
    printed = capsys.readouterr()
    assert '256 images cannot be cut into 4 x 3' in printed.err

    rows = [re.split(r' *\| *', line)[1:-1] for line in printed.out.splitlines() if line.startswith('| `')]
    decoded, memory, sent, *speeds = rows
    assert decoded[-1] == '50'
    parts = [float(cell) for cell in memory[3:]]
    assert parts[5] == pytest.approx(sum(parts[:5]), abs=0.03)
    assert float(sent[-1]) == pytest.approx(sum(map(float, sent[2:-1])), abs=0.2)
    assert [row[2] for row in speeds] == ['A100', 'H100']
    images_per_s, cores = float(speeds[0][7]), int(speeds[0][8])
    assert cores - 1 < images_per_s / 50 <= cores + 0.02
