"""Options of the training command: timm's names, recipes as defaults, errors as one line."""
import argparse
import logging
from pathlib import Path
from typing import Any

from ..data import create_sampler, list_samplers
from ..methods import check_options, list_methods, method_class
from ..models.factory import default_method
from ..models.heads import check_head
from ..models.tuning import create_tuning, list_tunings
from ..utils.errors import UserError
from ..utils.ranges import Number, shown
from .data_options import add_data_options
from .names import check_dataset, check_model
from .optim_options import check_optimizer, check_schedule
from .parser import BATCH_SIZE, IMG_SIZE, SEED, SHARE, TTA_HELP, WORKERS, Pairs, Parser
from .recipe import RECIPES, default_recipe, find_recipe, read_recipe, scale_schedule

__all__ = ['parse_train_args', 'train_parser']

_COUNT = Number(int, '[1, inf)')
_RATE = Number(float, '[0, inf)')

_logger = logging.getLogger(__name__)


def _add_images(parser: argparse.ArgumentParser):
    group = parser.add_argument_group('images')
    group.add_argument(
        '--val-fraction', type=SHARE, default=0.0,
        help='share of each class held out to choose by; of a class of one image none')

    # size and normalization
    group.add_argument(
        '--img-size', type=IMG_SIZE,
        help='side of the model\'s input; default: that of images in memory, for files that of the model')
    group.add_argument(
        '--crop-pct', type=Number(float, '(0, 1]'),
        help='share of the shorter side that evaluation looks at (files); default .875, with '
             '--pretrained that of the weights')
    group.add_argument(
        '--mean', type=Number(float, '[0, 1]'), nargs=3, help='channel means of pixels between 0 and 1')
    group.add_argument(
        '--std', type=Number(float, '(0, inf)'), nargs=3, help='channel standard deviations')

    group.add_argument(
        '-j', '--workers', type=WORKERS,
        help='decoding processes for each training process; default: its share of the cores, at most 8')


def _add_model(parser: argparse.ArgumentParser):
    group = parser.add_argument_group('model and method')

    # the network and its weights
    group.add_argument(
        '--model', default='bcl_resnet32', help='any timm model, hf-hub:USER/NAME or local-dir:FOLDER')
    group.add_argument(
        '--model-kwargs', nargs='*', default={}, action=Pairs, metavar='K=V',
        help='options of the model\'s constructor')
    group.add_argument(
        '--num-classes', type=_COUNT, help='must agree with the data set; checked, never needed')
    group.add_argument(
        '--pretrained', action='store_true', help='start from timm\'s weights for the model')
    group.add_argument(
        '--initial-checkpoint', default='',
        help='weights to start from: those that fit are taken, the others are named')

    group.add_argument(
        '--head',
        help='classifier: linear, or cosine, which is "cosine(scale=25)"; default: the model\'s own')
    group.add_argument(
        '--init-classifier', metavar='START',
        help='where a cosine classifier starts: class_means of the training images, "class_means(images=100)" of '
             'so many a class, or text:FILE.safetensors, see the guide on fine-tuning')

    # how it is trained
    group.add_argument(
        '--tune',
        help=f'what is trained of the model: one of {", ".join(list_tunings())}, perhaps with options, '
             '"adaptformer(bottleneck=16)", "lora(r=8)"; default: the method\'s, mostly all')
    group.add_argument(
        '--method', help=f'one of {", ".join(list_methods())}; default: the model\'s own, else ce')
    group.add_argument(
        '--method-kwargs', nargs='*', default={}, action=Pairs, metavar='K=V',
        help='options of the method; the documentation has a table of them')
    group.add_argument(
        '--sampler',
        help='classes of an epoch, in the streams that the method leaves open: one of '
             f'{", ".join(list_samplers())}; power takes its exponent, "power(q=-0.5)"; default: the '
             'method\'s, mostly instance')
    group.add_argument(
        '--epoch-length', choices=('natural', 'class-aware'), default='natural',
        help='samples of an epoch: as many as images, or largest class x number of classes')

    # averages of the weights, statistics of BatchNorm
    group.add_argument(
        '--model-ema', action='store_true', help='average the weights; the average is exported')
    group.add_argument(
        '--model-ema-decay', type=Number(float, '[0, 1]'), default=0.9998,
        help='share of the old average in each update')
    group.add_argument('--model-ema-warmup', action='store_true', help='begin with a short average')
    group.add_argument('--sync-bn', action='store_true', help='BatchNorm over all processes')


def _add_optimizer(parser: argparse.ArgumentParser):
    group = parser.add_argument_group('optimizer and schedule (timm)')

    # epochs and batches
    group.add_argument(
        '--epochs', type=Number(int, '[1, 1000000]'), default=200,
        help='scales the milestones and warm-up of a recipe')
    group.add_argument(
        '-b', '--batch-size', type=BATCH_SIZE, help='per process; default 128 without a recipe')
    group.add_argument(
        '--global-batch-size', type=BATCH_SIZE, help='over all processes and accumulated micro-batches')
    group.add_argument('--grad-accum-steps', type=_COUNT, default=1, help='micro-batches of an update')

    # the optimizer
    group.add_argument(
        '--opt', default='momentum',
        help='momentum is plain SGD; timm\'s sgd is Nesterov, its adamw and muon want a smaller --lr')
    group.add_argument('--lr', type=_RATE, default=0.1, help='learning rate after the warm-up')
    group.add_argument('--momentum', type=Number(float, '[0, 1)'), default=0.9, help='of the optimizer')
    group.add_argument(
        '--weight-decay', type=_RATE, default=5e-4, help='on all weights, as in the papers')
    group.add_argument(
        '--layer-decay', type=Number(float, '(0, 1]'),
        help='factor of the learning rate from layer to layer downwards')
    group.add_argument(
        '--clip-grad', type=Number(float, '[0, inf)'),
        help='largest norm of an update\'s gradient; 0 or none does not clip')

    # the schedule
    group.add_argument(
        '--sched', default='cosine',
        help='timm schedule: cosine, multistep, step, poly, constant and more')
    group.add_argument(
        '--decay-milestones', type=_COUNT, nargs='+', default=[161, 181],
        help='epochs, counted from 1, that are the first at a lower rate (multistep)')
    group.add_argument(
        '--decay-epochs', type=Number(float, '(0, inf)'), default=90,
        help='epochs between two drops (step)')
    group.add_argument(
        '--decay-rate', type=Number(float, '[0, 100]'), default=0.1,
        help='factor of each drop (step, multistep)')
    group.add_argument(
        '--min-lr', type=_RATE, default=0.0, help='where a cosine or polynomial schedule ends')
    group.add_argument(
        '--warmup-epochs', type=Number(int, '[0, 1000000]'), default=0, help='epochs of linear warm-up')
    group.add_argument(
        '--warmup-lr', type=_RATE, default=0.0, help='rate of the first epoch of the warm-up')
    group.add_argument(
        '--sched-on-updates', action='store_true', help='step the schedule per update, not per epoch')


def _add_run(parser: argparse.ArgumentParser):
    group = parser.add_argument_group('run')

    # how it is computed
    group.add_argument(
        '--seed', type=SEED, default=0, help='training seed: initialisation, order, views')
    group.add_argument(
        '--seeds', type=SEED, nargs='+', metavar='SEED',
        help='train with each of these seeds, one after the other, and print mean and spread; --resume auto goes on')
    group.add_argument(
        '--mixed-precision', choices=('no', 'bf16', 'fp16'), help='default: what accelerate launch says')
    group.add_argument(
        '--dist-timeout', type=Number(float, '(0, 1000000)'), default=30, metavar='MINUTES',
        help='stop where another process does not answer for so long; not while results are written')
    group.add_argument(
        '--channels-last', action=argparse.BooleanOptionalAction,
        help='memory format of the weights; default: where it was measured to be faster, on a CPU')
    group.add_argument('--torchcompile', action='store_true', help='compile the backbone')
    group.add_argument(
        '--grad-checkpointing', action='store_true',
        help='compute the blocks again in the backward pass: less memory, more time')

    # evaluation, and what is seen of the run
    group.add_argument(
        '-vb', '--validation-batch-size', type=BATCH_SIZE, default=256, help='per process')
    group.add_argument(
        '--tta', choices=('five_crop',), help=TTA_HELP)
    group.add_argument(
        '--val-interval', type=_COUNT, default=1, help='evaluate every so many epochs, and after the last')
    group.add_argument(
        '--patience', type=_COUNT, metavar='EPOCHS',
        help='stop where the hold-out (--val-fraction) has had no better balanced accuracy for so many epochs; '
             'default: train to the end')
    group.add_argument(
        '--log-interval', type=_COUNT, default=50, help='steps between two looks at the loss')
    group.add_argument(
        '--tracker', nargs='+', choices=('tensorboard', 'wandb', 'trackio'), default=[], metavar='NAME',
        help='follow the run in tensorboard, wandb or trackio too, or in several of them')
    group.add_argument(
        '--project', default='timm_longtail', help='project of the run in the trackers')

    # what it writes, and goes on from
    group.add_argument(
        '--save-steps', type=Number(int, '[0, inf)'), default=0,
        help='save inside an epoch too, every so many steps')
    group.add_argument('--output', default='output', help='folder of all runs')
    group.add_argument(
        '--experiment', help='folder in --output; without it <model>.<method>.<dataset>_if<IF>.s<seed>')
    group.add_argument('--resume', help='auto, or a checkpoint or output folder')
    group.add_argument(
        '--license',
        help='licence of the exported weights, for their card; default: that of the pretrained weights')
    group.add_argument(
        '--results', help='folder for the row of results; refused where the code is not committed')

    # the recipe
    group.add_argument(
        '-c', '--config', help='recipe, by its name or its path (YAML); its values become the defaults')
    group.add_argument(
        '--no-recipe', action='store_true', help='do not take the recipe <model>.<dataset>_if<IF>')


def train_parser() -> argparse.ArgumentParser:
    """Return the parser of the training command."""
    parser = Parser(description='Train a model on long-tailed data.')
    add_data_options(parser)
    _add_images(parser)
    _add_model(parser)
    _add_optimizer(parser)
    _add_run(parser)
    return parser


def parse_train_args(argv: list[str] | None = None, recipe_folder: Path = RECIPES) -> argparse.Namespace:
    """Parse the options of the training command: defaults, then the recipe, then what was typed.

    Everything that the options alone decide is checked here, before any data is read or any file written.

    Args:
        argv: Arguments; None takes the command line.
        recipe_folder: Where `<model>.<dataset>_if<IF>.yaml` is looked for.

    Returns:
        All options, `method` and `sampler` resolved, and `recipe`: the path of the recipe that was used, or None.

    Raises:
        UserError: Unknown names, values out of range, a recipe that does not fit, contradicting options.
    """
    parser = train_parser()
    args = vars(parser.parse_args(argv))
    typed = _typed_options(argv)
    _check_names(args)

    # the recipe's values replace defaults, typed ones replace the recipe's
    recipe = {}
    recipe_path = _choose_recipe(args, recipe_folder)
    if recipe_path is not None:
        recipe = read_recipe(recipe_path, parser)
        _drop_foreign_options(recipe, typed)
        args.update({**recipe, **typed})
        for name in ('model_kwargs', 'method_kwargs'):  # one typed pair does not drop the recipe's others
            args[name] = {**recipe.get(name, {}), **typed.get(name, {})}

    # model, method and sampler
    _check_names(args)  # those of the recipe
    args['method'] = args['method'] or default_method(args['model'], **args['model_kwargs'])
    check_options(args['method'], args['method_kwargs'])
    args['sampler'] = args['sampler'] or method_class(args['method']).sampler
    create_sampler(args['sampler'], [0], args['epochs'])  # of one image: is there such a sampler?

    if args['tune'] is not None:
        create_tuning(args['tune'])
    if args['head'] is not None:
        check_head(args['head'])

    for name in ('num_classes', 'pretrained'):
        if name in args['model_kwargs']:
            raise UserError(f'--model-kwargs {name}: the data set and --pretrained decide')

    _check_seeds(args, recipe, typed)
    if args['patience'] and not args['val_fraction']:
        raise UserError(
            f'--patience {args["patience"]}: a run stops by the accuracy on a hold-out, never by that on the test set: '
            'add --val-fraction')

    # batches and schedule
    _choose_batch_size(args, recipe, typed)
    args['clip_grad'] = args['clip_grad'] or None  # 0 is how timm's users switch it off
    _check_milestones(args)
    if 'epochs' in typed and 'epochs' in recipe:
        scale_schedule(args, recipe, typed)
    else:
        _warn_of_unreached(args)

    options = argparse.Namespace(**args, recipe=recipe_path)
    check_optimizer(options)
    check_schedule(options)
    return options


def _check_names(args: dict[str, Any]):
    """Check that the model, the data set and, where one is chosen, the method exist."""
    check_model(args['model'])
    check_dataset(args['dataset'])
    if args['method'] is not None:
        method_class(args['method'])


def _typed_options(argv: list[str] | None) -> dict[str, Any]:
    """Return the options that stand on the command line, without defaults."""
    parser = train_parser()
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    return vars(parser.parse_args(argv))


def _choose_recipe(args: dict[str, Any], folder: Path) -> Path | None:
    """Return the recipe that is named, or else that of the model and the data set."""
    if args['config']:
        return find_recipe(args['config'])
    if args['no_recipe'] or args['imbalance_profile'] != 'exp':
        return None
    return default_recipe(args['model'], args['dataset'], args['imbalance_factor'], args['method'], folder)


def _drop_foreign_options(recipe: dict[str, Any], typed: dict[str, Any]):
    """Take what a recipe says of its method out of it where another method was typed; says so."""
    method = typed.get('method')
    if method in (None, recipe.get('method')):
        return

    dropped = [name for name in ('method_kwargs', 'sampler') if recipe.pop(name, None)]
    if dropped:
        options = ' and '.join(f'--{name.replace("_", "-")}' for name in dropped)
        _logger.warning(f'the recipe is one of {recipe.get("method")}: its {options} do not count for {method}')


def _check_seeds(args: dict[str, Any], recipe: dict[str, Any], typed: dict[str, Any]):
    """Refuse seeds that contradict other options."""
    seeds = args['seeds']
    if not seeds:
        return
    if 'seeds' in recipe:
        raise UserError('seeds is an option of the command line, not of a recipe')
    if 'seed' in typed:
        raise UserError('give --seed or --seeds, not both')
    if len(set(seeds)) < len(seeds):
        raise UserError(f'--seeds {shown(seeds)}: a seed is named twice')
    if args['resume'] not in (None, 'auto'):
        raise UserError('--seeds goes on by --resume auto: each seed has a folder of its own')


def _choose_batch_size(args: dict[str, Any], recipe: dict[str, Any], typed: dict[str, Any]):
    """Let one of the two batch sizes count: the typed one, else that of the recipe."""
    for given in (typed, recipe):
        if given.get('batch_size') and given.get('global_batch_size'):
            raise UserError('give --batch-size (per process) or --global-batch-size, not both')

    if 'batch_size' in typed:
        args['global_batch_size'] = None
    elif args['global_batch_size'] is not None:
        args['batch_size'] = None
    elif args['batch_size'] is None:
        args['batch_size'] = 128


def _check_milestones(args: dict[str, Any]):
    milestones = args['decay_milestones']
    if milestones != sorted(set(milestones)):
        raise UserError(f'--decay-milestones must increase, got {shown(milestones)}')


def _warn_of_unreached(args: dict[str, Any]):
    """Say which parts of the schedule lie behind the end of the run."""
    epochs = args['epochs']
    if args['warmup_epochs'] >= epochs:
        _logger.warning(
            f'--warmup-epochs {args["warmup_epochs"]}: the run has {epochs}, and ends before it reaches --lr')

    unreached = [m for m in args['decay_milestones'] if m > epochs]
    if args['sched'] == 'multistep' and unreached:
        _logger.warning(f'--decay-milestones {shown(unreached)}: the run has {epochs} epochs, and ends before')
