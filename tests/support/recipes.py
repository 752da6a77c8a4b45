"""What tests of recipes share: the parts of a name, the options, the method and a small network of a recipe."""
import re
from pathlib import Path

import pytest
import timm
import torch
import yaml

from timm_longtail.config.optim_options import create_scheduler
from timm_longtail.config.recipe import RECIPES as FOLDER
from timm_longtail.config.recipe import read_recipe
from timm_longtail.config.train_options import train_parser
from timm_longtail.methods import create_method
from timm_longtail.models.resnet_cifar import ResNetCifar

RECIPES = sorted(FOLDER.glob('*.yaml'))
every_recipe = pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)


def split_name(path: Path) -> tuple[str, str | None, str, float | None]:
    """Return model, method (or None), data set and factor (None for natural counts) of a recipe's file name.

    Behind the method a variant may stand: `ce-sqrt`; behind the model the tag of its weights.
    """
    names, factor = re.fullmatch(r'(.+?)(?:_if([0-9.]+))?', path.stem).groups()
    model, *method, dataset = names.split('.')
    if method and timm.models.is_model_pretrained(f'{model}.{method[0]}'):
        model = f'{model}.{method.pop(0)}'
    assert len(method) <= 1, path.stem
    return model, (method[0].partition('-')[0] if method else None), dataset, (float(factor) if factor else None)


def recipe_options(name: str):
    """Return the options of a recipe over the parser's defaults, whatever data sets there are."""
    parser = train_parser()
    options = parser.parse_args([])
    vars(options).update(read_recipe(FOLDER / f'{name}.yaml', parser))
    return options


def build_method(options):
    """Return the recipe's method for four classes, on no device: what it holds matters, not its weights."""
    network = timm.create_model(options.model, num_classes=4, device='meta', **options.model_kwargs)
    return create_method(options.method, network, [4, 3, 2, 1], tune=options.tune, **options.method_kwargs)


def small_network(path: Path) -> torch.nn.Module:
    """Build a recipe's network with one block a stage."""
    recipe = yaml.safe_load(path.read_text())
    stages = 3 if isinstance(timm.create_model(recipe['model'], device='meta'), ResNetCifar) else 4
    return timm.create_model(recipe['model'], num_classes=4, layers=(1,) * stages, **recipe.get('model_kwargs', {}))


def learning_rates(options, steps_per_epoch: int = 3) -> list[float]:
    """Return the rate of each epoch, as the loop sets it: once an epoch, then once a step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=options.lr)
    scheduler = create_scheduler(options, optimizer, steps_per_epoch)
    rates = []
    for epoch in range(options.epochs):
        scheduler.step(epoch)
        seen = set()
        for step in range(steps_per_epoch):
            scheduler.step_update(epoch * steps_per_epoch + step)
            seen.add(optimizer.param_groups[0]['lr'])
        assert len(seen) == 1  # steps leave the rate alone
        rates += seen
    return rates
