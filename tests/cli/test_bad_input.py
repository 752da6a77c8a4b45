"""What a user may get wrong, from the shell to the data: one line that names it, status 2, nothing left behind.

Faults on the way (full disks, lost processes, unreadable images in an epoch) are in `test_folder.py`, `test_hosts.py`,
`test_train_script.py` and `test_worker_loader.py`.
"""
import numpy as np
import pytest
import timm
import yaml
from PIL import Image
from safetensors.torch import save_file

from ..support.runs import TINY, refused

pytestmark = pytest.mark.script
SHORT = [*TINY, '--dataset', 'digits_lt', '--no-recipe', '--method', 'bcl', '--batch-size', '64', '--epochs', '2']

# options behind SHORT, where PLACE is a folder with the files of `place`; and what the line says
BAD_INPUT = {
    # names and numbers
    'model': (['--model', 'bcl_resnet23'], "unknown model 'bcl_resnet23'; did you mean bcl_resnet32, bcl_resnet20"),
    'method': (['--method', 'bcll'], "unknown method 'bcll'; did you mean bcl"),
    'data set': (['--dataset', 'cifar100lt'], "unknown data set 'cifar100lt'; did you mean cifar100_lt"),
    'data folder': (['--dataset', 'cifar100_lt', '--data-dir', '/nowhere'], '/nowhere is not a folder'),
    'factor': (['--imbalance-factor', '0.5'], '--imbalance-factor must be at least 1, got 0.5'),
    'empty class': (['--imbalance-factor', '5000'], 'has no image'),
    'classes': (['--num-classes', '7'], '--num-classes 7 contradicts digits_lt: 10 classes'),
    'zero batches': (['--batch-size', '4096'], 'no batch: an epoch has'),
    'both batch sizes': (['--global-batch-size', '8'], 'not both'),
    'optimizer': (['--opt', 'momentun'], "unknown optimizer 'momentun'; did you mean momentum"),
    'method option': (['--method-kwargs', 'temp=1'], "method 'bcl' has no option 'temp'"),
    'model option': (['--model-kwargs', 'depth=3'], "unexpected keyword argument 'depth'"),
    'model folder': (['--model', 'local-dir:/nowhere'], '--model local-dir:/nowhere'),
    'seed': (['--data-seed', '-1'], '--data-seed must be in'),
    'hold-out': (['--val-fraction', '-0.5'], '--val-fraction must be in [0, 1)'),
    'view': (['--method-kwargs', 'views=sim'], "option 'views' of method 'bcl' must be 2 or 3 names, got 'sim'"),
    'image size': (
        ['--model', 'vit_tiny_patch16_224', '--model-kwargs', 'depth=1', '--img-size', '8'],
        'does not take images of 8x8'),
    'recipe': (['-c', 'nowhere.yaml'], 'no recipe at nowhere.yaml'),
    'resume': (['--resume', 'nowhere'], '--resume nowhere: no such file or folder'),
    'option': (['--epoch', '3'], "unknown option '--epoch'; did you mean --epochs"),
    'number': (['--lr', 'high'], "--lr must be a number, at least 0, got 'high'"),
    'choice': (['--mixed-precision', 'bf8'], "invalid choice: 'bf8'"),
    'loader': (['--loader', 'memory'], "invalid choice: 'memory'"),
    'profile': (['--imbalance-profile', 'pareto'], "invalid choice: 'pareto'"),
    'epochs': (['--epochs', '0'], '--epochs must be in [1, 1000000], got 0'),
    'img size': (['--img-size', '0'], '--img-size must be in [1, 4096], got 0'),
    'crop': (['--crop-pct', '2'], '--crop-pct must be in (0, 1]'),
    'layer decay': (['--layer-decay', '0'], '--layer-decay must be in (0, 1]'),
    'workers': (['--workers', '-1'], '--workers must be in [0, 1024], got -1'),
    'std': (['--std', '1', '0', '1'], '--std must be above 0'),
    'accumulation': (['--grad-accum-steps', '100'], '--grad-accum-steps 100 exceeds the batches of an epoch'),
    'schedule': (['--sched', 'cosin'], '--sched cosin'),
    'plateau': (['--sched', 'plateau'], '--sched plateau depends on what was measured before'),
    'method switch': (['--method', 'pc_comp', '--method-kwargs', 'alternate=false'], "'pc_comp' must be True or False"),
    'method name': (['--method', 'pc_comp', '--method-kwargs', 'pc=[0,1]'], "'pc_comp' must be a name, got [0, 1]"),
    'method number': (['--method-kwargs', 'temperature=warm'], "option 'temperature' of method 'bcl' must be a number"),
    'pair': (['--method-kwargs', 'temperature'], "--method-kwargs must be pairs of K=V, got 'temperature'"),
    'folder as a model': (['--model', 'PLACE/one'], 'is a folder: write local-dir:'),
    'unknown view': (['--method', 'ce', '--method-kwargs', 'view=crop'], "unknown view 'crop'"),
    'view argument': (['--method', 'ce', '--method-kwargs', 'view="rrc(size=3)"'], "view rrc takes scale, jitter"),
    'view of files': (['--method', 'ce', '--method-kwargs', 'view=rand'], 'works on image files only'),
    'cosine scale': (['--model-kwargs', 'cosine_scale=-1'], 'a cosine classifier must be in (0, 10000], got -1'),
    'classes of the model': (['--model-kwargs', 'num_classes=3'], '--model-kwargs num_classes: the data set'),
    # what a method finds wrong with the run
    'start of the weights': (
        ['--method', 'class_balanced', '--method-kwargs', 'reweight_start=161'],
        're-weighting starts at epoch 161, and the run has 2'),
    'short queue': (
        ['--method', 'moco', '--method-kwargs', 'queue_size=40'],
        'queue_size=40 is shorter than a global batch of 64'),
    'groups of a batch': (
        ['--method', 'moco', '--method-kwargs', 'bn_groups=5'], 'a batch of 64 cannot be cut into 5 groups'),
    'flags': (
        ['--method', 'pnda', '--method-kwargs', 'rotations=pnda', 'flags=nowhere'], 'no flag file at nowhere'),
    'fp16': (['--mixed-precision', 'fp16'], '--mixed-precision fp16 needs a device'),
    'sync bn': (['--sync-bn'], '--sync-bn needs CUDA devices'),
    'timeout': (['--dist-timeout', '0'], '--dist-timeout must be in (0, 1000000), got 0.0'),
    'tracker': (['--tracker', 'notebook'], "invalid choice: 'notebook'"),
    # weights
    'no pretrained weights': (['--pretrained'], 'No pretrained weights exist for'),
    'no such weights': (['--initial-checkpoint', 'PLACE/none.pth'], 'none.pth: no such file'),
    'weights of another model': (['--initial-checkpoint', 'PLACE/resnet18.safetensors'], 'fits ResNetCifar'),
    'weights cut short': (['--initial-checkpoint', 'PLACE/cut.safetensors'], 'is damaged or not a safetensors'),
    'weights that are text': (['--initial-checkpoint', 'PLACE/text.pth'], 'is truncated or is not a checkpoint'),
    'hub name': (['--model', 'hf-hub:no/such/name'], '--model hf-hub:no/such/name'),
    # recipes
    'recipe with an unknown key': (['-c', 'PLACE/unknown.yaml'], "unknown option 'learning_rate'"),
    'recipe that is no YAML': (['-c', 'PLACE/broken.yaml'], 'broken.yaml is damaged or not a recipe'),
    'recipe that is a list': (['-c', 'PLACE/list.yaml'], 'is not a recipe'),
    'recipe with a word for a number': (['-c', 'PLACE/word.yaml'], 'weight_decay'),
    'recipe that is a folder': (['-c', 'PLACE'], 'is a folder, not a recipe'),
    # data
    'folder without a folder': (['--dataset', 'folder'], 'folder needs --data-dir'),
    'folder that is not there': (['--dataset', 'folder', '--data-dir', 'PLACE/none'], 'is not a folder'),
    'folder of one class': (['--dataset', 'folder', '--data-dir', 'PLACE/one'], 'has one class folder only'),
    'folder without a test': (['--dataset', 'folder', '--data-dir', 'PLACE/notest'], 'no test folder'),
    'class of the test only': (['--dataset', 'folder', '--data-dir', 'PLACE/extra'], "has a class 'yak'"),
    'image in memory': (['--dataset', 'folder', '--data-dir', 'PLACE/broken'], 'cannot read the image of'),
    'image in an epoch': (
        ['--dataset', 'folder', '--data-dir', 'PLACE/photos', '--workers', '0', '--batch-size', '4'],
        'x.png: not an image, or cut short; --skip-bad-images goes on'),
    'sizes in memory': (
        ['--dataset', 'folder', '--data-dir', 'PLACE/photos', '--loader', 'resident'],
        'a resident data set has one size'),
    'split': (
        ['--dataset', 'folder', '--data-dir', 'PLACE/extra', '--test-split', 'none'],
        "has no split 'none'; it has test, train"),
    'streamed': (['--dataset', 'hfids/user/set'], 'hfids/'),
    'hub set': (['--dataset', 'hfds/'], 'what stands behind the slash is missing'),
    'hub folder': (['--dataset', 'hfds/PLACE/one/cat'], 'has no label column'),
    'lists': (['--dataset', 'imagenet_lt', '--data-dir', 'PLACE'], 'ImageNet_LT_train.txt'),
    'files of the digits': (['--loader', 'worker'], 'digits_lt has no files'),
    'packed file': (['--dataset', 'packed:PLACE/none.safetensors'], 'no packed data set at'),
    'packed weights': (['--dataset', 'packed:PLACE/resnet18.safetensors'], 'is not a packed data set'),
    'folder of a packed file': (['--dataset', 'packed:x.safetensors', '--data-dir', 'PLACE'], 'it takes no folder'),
    'crop in memory': (['--crop-pct', '0.9'], 'images in memory are looked at whole'),
    'factor of a benchmark': (['--dataset', 'cifar10', '--imbalance-factor', '10'], 'name cifar10_lt to cut it'),
    # folders
    'resume of nothing': (['--resume', 'PLACE/one'], 'no checkpoint in this folder'),
    'resume of text': (['--resume', 'PLACE/text.pth'], 'is truncated or is not a checkpoint'),
}


def draw(path, size=(40, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with one of everything that is wrong."""
    place = tmp_path_factory.mktemp('place')

    # weights and recipes
    save_file(timm.create_model('resnet18', num_classes=10).state_dict(), place / 'resnet18.safetensors')
    (place / 'cut.safetensors').write_bytes((place / 'resnet18.safetensors').read_bytes()[:1000])
    (place / 'text.pth').write_text('weights')
    (place / 'unknown.yaml').write_text(yaml.safe_dump({'learning_rate': 0.1}))
    (place / 'broken.yaml').write_text('lr: [0.1')
    (place / 'list.yaml').write_text('- lr')
    (place / 'word.yaml').write_text('weight_decay: much')

    # images
    for number in range(8):
        draw(place / 'one' / 'cat' / f'{number}.png')
        for name in ('cat', 'dog'):
            draw(place / 'notest' / 'train' / name / f'{number}.png')
            for kind in ('extra', 'broken', 'photos'):
                for split in ('train', 'test'):
                    size = (40, 40 + 10 * (kind == 'photos') * number)
                    draw(place / kind / split / name / f'{number}.png', size)
    draw(place / 'extra' / 'test' / 'yak' / '0.png')
    for kind in ('broken', 'photos'):
        (place / kind / 'train' / 'dog' / 'x.png').write_bytes(b'no image')
    return place


@pytest.mark.parametrize('case', BAD_INPUT)
def test_bad_input_is_one_line(case, place, tmp_path, capsys, monkeypatch):
    options, message = BAD_INPUT[case]
    options = [option.replace('PLACE', str(place)) for option in options]
    before = sorted(place.rglob('*'))
    assert message in refused(capsys, monkeypatch, *SHORT, '--output', tmp_path / 'output', *options)
    assert case == 'image in an epoch' or not (tmp_path / 'output').exists()
    assert sorted(place.rglob('*')) == before
