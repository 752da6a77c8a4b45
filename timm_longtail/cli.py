"""Command lines of the entry points: timm's option names, recipes as defaults, errors as one line."""
import argparse
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from timm.utils import ParseKwargs
from torch import nn

from .data import default_imbalance_factor, find_dataset, list_samplers
from .errors import UserError, unknown_name
from .methods import list_methods, method_class
from .options import Parser, add_data_options

__all__ = ['check_names', 'create_timm_model', 'default_method', 'parse_train_args', 'train_parser']

_RECIPE_FOLDER = Path(__file__).parent.parent / 'recipes'


def _add_images(parser: argparse.ArgumentParser):
    group = parser.add_argument_group('images')
    group.add_argument('--val-fraction', type=float, default=0.0, help='share of each class held out to choose by')
    group.add_argument('--img-size', type=int, help='side of the model\'s input; default: of images in memory their '
                       'own, of files that of the model')
    group.add_argument('--crop-pct', type=float, help='share of the shorter side that evaluation looks at (files); '
                       'default .875, with --pretrained that of the weights')
    group.add_argument('--mean', type=float, nargs=3, help='channel means, for values in [0, 1]')
    group.add_argument('--std', type=float, nargs=3, help='channel standard deviations')
    group.add_argument('-j', '--workers', type=int, help='decoding processes for each training process; default: '
                       'its share of the cores, at most 8')


def _add_model(parser: argparse.ArgumentParser):
    group = parser.add_argument_group('model and method')
    group.add_argument('--model', default='bcl_resnet32', help='any timm model, hf-hub:… or local-dir:…')
    group.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='K=V',
                       help='options of the model\'s constructor')
    group.add_argument('--num-classes', type=int, help='must agree with the data set; checked, never needed')
    group.add_argument('--pretrained', action='store_true', help='start from timm\'s weights for the model')
    group.add_argument('--initial-checkpoint', default='',
                       help='weights to start from: those that fit are taken, the others are named')
    group.add_argument('--method', help=f'one of {", ".join(list_methods())}; default: the model\'s own, else ce')
    group.add_argument('--method-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='K=V',
                       help='options of the method, see the README\'s table')
    group.add_argument('--sampler',
                       help=f'classes of an epoch, in the streams that the method leaves open: one of '
                       f'{", ".join(list_samplers())}; power takes its exponent, "power(q=-0.5)"; default: the '
                       'method\'s, mostly instance')
    group.add_argument('--epoch-length', choices=('natural', 'class-aware'), default='natural',
                       help='samples of an epoch: as many as images, or largest class x number of classes')
    group.add_argument('--model-ema', action='store_true', help='average the weights; the average is exported')
    group.add_argument('--model-ema-decay', type=float, default=0.9998, help='share of the old average in each update')
    group.add_argument('--model-ema-warmup', action='store_true', help='begin with a short average')
    group.add_argument('--sync-bn', action='store_true', help='BatchNorm over all processes')


def _add_optimizer(parser: argparse.ArgumentParser):
    group = parser.add_argument_group('optimizer and schedule (timm)')
    group.add_argument('--epochs', type=int, default=200, help='scales the milestones and warm-up of a recipe')
    group.add_argument('-b', '--batch-size', type=int, help='per process; default 128 without a recipe')
    group.add_argument('--global-batch-size', type=int, help='over all processes and accumulated micro-batches')
    group.add_argument('--grad-accum-steps', type=int, default=1, help='micro-batches of an update')
    group.add_argument('--opt', default='momentum', help='momentum is plain SGD; timm\'s sgd is Nesterov')
    group.add_argument('--lr', type=float, default=0.1, help='learning rate after the warm-up')
    group.add_argument('--momentum', type=float, default=0.9, help='of the optimizer')
    group.add_argument('--weight-decay', type=float, default=5e-4, help='on all weights, as in the papers')
    group.add_argument('--layer-decay', type=float, help='factor of the learning rate from layer to layer downwards')
    group.add_argument('--clip-grad', type=float, help='largest norm of an update\'s gradient')
    group.add_argument('--sched', default='cosine', help='timm schedule: cosine, multistep, step, poly, constant, …')
    group.add_argument('--decay-milestones', type=int, nargs='+', default=[161, 181],
                       help='epochs, counted from 1, that are the first at a lower rate (multistep)')
    group.add_argument('--decay-epochs', type=float, default=90, help='epochs between two drops (step)')
    group.add_argument('--decay-rate', type=float, default=0.1, help='factor of each drop (step, multistep)')
    group.add_argument('--min-lr', type=float, default=0.0, help='where a cosine or polynomial schedule ends')
    group.add_argument('--warmup-epochs', type=int, default=0, help='epochs of linear warm-up')
    group.add_argument('--warmup-lr', type=float, default=0.0, help='rate of the first epoch of the warm-up')
    group.add_argument('--sched-on-updates', action='store_true', help='step the schedule per update, not per epoch')


def _add_run(parser: argparse.ArgumentParser):
    group = parser.add_argument_group('run')
    group.add_argument('--seed', type=int, default=0, help='training seed: initialisation, order, views')
    group.add_argument('--mixed-precision', choices=('no', 'bf16', 'fp16'), help='default: what accelerate launch says')
    group.add_argument('--dist-timeout', type=float, default=30, metavar='MINUTES',
                       help='stop where another process does not answer for so long; not while results are written')
    group.add_argument('--channels-last', action=argparse.BooleanOptionalAction,
                       help='memory format of the weights; default: where it was measured to be faster, on a CPU')
    group.add_argument('--torchcompile', action='store_true', help='compile the backbone')
    group.add_argument('-vb', '--validation-batch-size', type=int, default=256, help='per process')
    group.add_argument('--val-interval', type=int, default=1, help='evaluate every so many epochs, and after the last')
    group.add_argument('--log-interval', type=int, default=50, help='steps between two looks at the loss')
    group.add_argument('--save-steps', type=int, default=0, help='save inside an epoch too, every so many steps')
    group.add_argument('--output', default='output', help='folder of all runs')
    group.add_argument('--experiment', help='folder in --output; without it <model>.<method>.<dataset>_if<IF>.s<seed>')
    group.add_argument('--resume', help='auto, or a checkpoint or output folder')
    group.add_argument('--tracker', nargs='+', choices=('tensorboard', 'wandb', 'trackio'), default=[], metavar='NAME',
                       help='follow the run in tensorboard, wandb or trackio too, or in several of them')
    group.add_argument('--project', default='timm_longtail', help='project of the run in the trackers')
    group.add_argument('--license', help='licence of the exported weights, for their card; default: that of the '
                       'pretrained weights')
    group.add_argument('--results', help='folder for the row of results; refused where the code is not committed')
    group.add_argument('-c', '--config', help='recipe (YAML) whose values become the defaults')
    group.add_argument('--no-recipe', action='store_true', help='do not take recipes/<model>.<dataset>_if<IF>.yaml')


def train_parser() -> argparse.ArgumentParser:
    """Return the parser of `train.py`."""
    parser = Parser('train.py', description='Train a model on long-tailed data.')
    for add in (add_data_options, _add_images, _add_model, _add_optimizer, _add_run):
        add(parser)
    return parser


def parse_train_args(argv: list[str] | None = None, recipe_folder: Path = _RECIPE_FOLDER) -> argparse.Namespace:
    """Parse the command line of `train.py`: defaults, then the recipe, then what was typed.

    Args:
        argv: Arguments; None takes the command line.
        recipe_folder: Where `<model>.<dataset>_if<IF>.yaml` is looked for.

    Returns:
        All options, `method` resolved, and `recipe`: the path of the recipe that was used, or None.

    Raises:
        UserError: Unknown names, a recipe that does not fit, contradicting options.
    """
    parser = train_parser()
    args = vars(parser.parse_args(argv))
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    typed = vars(parser.parse_args(argv))
    check_names(args['model'], args['dataset'], args['method'])

    recipe_path = Path(args['config']) if args['config'] else _default_recipe(args, recipe_folder)
    if recipe_path is not None:
        recipe = _read_recipe(recipe_path, parser)
        args.update({**recipe, **typed})
        for name in ('model_kwargs', 'method_kwargs'):  # one typed pair does not drop the recipe's others
            args[name] = {**(recipe.get(name) or {}), **typed.get(name, {})}
        _scale_schedule(args, recipe, typed)
    args['method'] = args['method'] or default_method(args['model'], **args['model_kwargs'])
    check_names(args['model'], args['dataset'], args['method'])
    args['sampler'] = args['sampler'] or method_class(args['method']).sampler
    _check_batch_size(args, typed)
    _check_ranges(args)
    return argparse.Namespace(**args, recipe=recipe_path)


def check_names(model: str, dataset: str, method: str | None = None):
    """Raise a `UserError` with the nearest names for a model, data set or method that does not exist."""
    if not model.startswith(('hf-hub:', 'hf_hub:', 'local-dir:')) and not timm.is_model(model):
        if Path(model).is_dir():
            raise UserError(f'--model {model} is a folder: write local-dir:{model}')
        raise unknown_name('model', model, timm.list_models())
    if not dataset.startswith('packed:'):
        find_dataset(dataset)
    if method is not None:
        method_class(method)


def _default_recipe(args: dict[str, Any], folder: Path) -> Path | None:
    if args['no_recipe']:
        return None
    factor = args['imbalance_factor'] or default_imbalance_factor(args['dataset'])
    if args['imbalance_profile'] != 'exp':
        return None
    tag = '' if factor in (None, 1) else f'_if{factor:g}'
    path = folder / f'{args["model"]}.{args["dataset"].replace("/", "_")}{tag}.yaml'
    if not path.is_file():
        return None
    fits = args['method'] in (None, _load_recipe(path).get('method'))
    return path if fits else None


def _load_recipe(path: Path) -> dict[str, Any]:
    try:
        recipe = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as e:
        raise UserError(f'{path} is not YAML: {" ".join(str(e).split())}') from e
    if not isinstance(recipe, dict):
        raise UserError(f'{path} is not a recipe: it holds no `option: value` lines')
    return recipe


def _read_recipe(path: Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f'no recipe at {path}')
    actions = {action.dest: action for action in parser._actions}
    recipe = _load_recipe(path)
    for key, value in recipe.items():
        if key not in actions or key in ('config', 'help'):
            raise UserError(f'{path}: {unknown_name("option", key, list(actions))}')
        if isinstance(value, str) and actions[key].type is not None:
            try:
                recipe[key] = actions[key].type(value)  # YAML 1.1 reads 5e-4 as a string
            except ValueError as e:
                raise UserError(f'{path}: {key}: {e}') from e
        if actions[key].nargs == '+' and not isinstance(value, list):
            recipe[key] = [recipe[key]]
        for chosen in value if isinstance(value, list) else [value]:
            if actions[key].choices and chosen not in actions[key].choices:
                raise UserError(f'{path}: {key}: {chosen} is not one of {", ".join(actions[key].choices)}')
    return recipe


def _scale_schedule(args: dict[str, Any], recipe: dict[str, Any], typed: dict[str, Any]):
    """Keep a recipe's proportions when another number of epochs was typed."""
    if 'epochs' not in typed or 'epochs' not in recipe:
        return
    ratio = typed['epochs'] / recipe['epochs']
    if 'decay_milestones' in recipe and 'decay_milestones' not in typed:
        args['decay_milestones'] = [round((m - 1) * ratio) + 1 for m in recipe['decay_milestones']]
    if 'warmup_epochs' in recipe and 'warmup_epochs' not in typed:
        args['warmup_epochs'] = round(recipe['warmup_epochs'] * ratio)


def _check_batch_size(args: dict[str, Any], typed: dict[str, Any]):
    if 'batch_size' in typed and 'global_batch_size' in typed:
        raise UserError('give --batch-size (per process) or --global-batch-size, not both')
    if 'batch_size' in typed:
        args['global_batch_size'] = None
    elif args['global_batch_size'] is None and args['batch_size'] is None:
        args['batch_size'] = 128
    for name in (
            'batch_size', 'global_batch_size', 'grad_accum_steps', 'epochs', 'log_interval', 'val_interval',
            'img_size', 'validation_batch_size'):
        if args[name] is not None and args[name] < 1:
            raise UserError(f'--{name.replace("_", "-")} must be at least 1, got {args[name]}')


def _check_ranges(args: dict[str, Any]):
    if not 0 <= args['val_fraction'] < 1:
        raise UserError(f'--val-fraction must be in [0, 1), got {args["val_fraction"]}')
    for name in ('crop_pct', 'layer_decay'):
        if args[name] is not None and not 0 < args[name] <= 1:
            raise UserError(f'--{name.replace("_", "-")} must be in (0, 1], got {args[name]}')
    if args['workers'] is not None and args['workers'] < 0:
        raise UserError(f'--workers must be at least 0, got {args["workers"]}')
    if args['std'] is not None and min(args['std']) <= 0:
        raise UserError(f'--std must be above 0, got {args["std"]}')
    for name in ('seed', 'data_seed'):
        if not 0 <= args[name] < 2 ** 32:
            raise UserError(f'--{name.replace("_", "-")} must be in [0, 2**32), got {args[name]}')


def default_method(model: str, **kwargs) -> str:
    """Return the method that `train.py` takes for a timm model, built with options of its own, unless told."""
    with torch.device('meta'):
        return getattr(create_timm_model(model, **kwargs), 'default_method', 'ce')


def create_timm_model(name: str, **kwargs) -> nn.Module:
    """Call `timm.create_model`; what it refuses becomes a `UserError`."""
    try:
        return timm.create_model(name, **kwargs)
    except (TypeError, ValueError, RuntimeError, OSError, AssertionError) as e:
        options = f' with {kwargs}' if kwargs else ''
        raise UserError(f'--model {name}{options}: {" ".join(str(e).split())}') from e
