"""The commands of `timm-longtail`, one module each; nothing is imported before a command is chosen."""
from dataclasses import dataclass

__all__ = ['COMMANDS', 'Command']


@dataclass(frozen=True)
class Command:
    """A command: a module with `create_parser()` and `main(argv)`.

    Attributes:
        module: Dotted path of the module.
        help: What the command does, for the list of commands.
    """
    module: str
    help: str


COMMANDS = {
    'train': Command('timm_longtail.cli.train', 'train a model on long-tailed data'),
    'validate': Command('timm_longtail.cli.validate', 'evaluate models, by groups of classes'),
    'predict': Command('timm_longtail.cli.predict', 'say which class images are of'),
    'retrain': Command('timm_longtail.cli.retrain', 'retrain the classifier of a trained model'),
    'compare': Command('timm_longtail.cli.compare', 'say which classifier is best for your data, and export it'),
    'report': Command('timm_longtail.cli.report', 'write one page that shows runs, for the browser'),
    'recipes': Command('timm_longtail.cli.recipes', 'list the recipes, or print one'),
    'pack': Command('timm_longtail.cli.pack', 'write a data set as one file'),
    'push': Command('timm_longtail.cli.push', 'upload an exported model to the Hub'),
    'flags': Command('timm_longtail.cli.flags', 'show which images RAIS found to look alike in every rotation'),
    'benchmark': Command('timm_longtail.cli.benchmark', 'measure how fast training is on this machine'),
}
