"""`make demo`: train on the embedded digits, check the table against a floor, reload the export in a new process."""
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent

ROWS = 'digits_lt_if20.bcl_resnet20.bcl.e12.s*.json'
_RELOAD = '''
import sys, timm, timm_longtail, torch
model = timm.create_model('local-dir:' + sys.argv[1], pretrained=True).eval()
print('reloaded', type(model).__name__, tuple(model(torch.zeros(1, 3, 32, 32)).shape))
'''


def floor() -> float:
    """Return the accuracy that a run must reach: mean minus three standard deviations of the rows in `results/`."""
    rows = [json.loads(path.read_text()) for path in sorted((ROOT / 'results').glob(ROWS))]
    measured = [row['last']['all'] for row in rows]
    assert len(measured) >= 3, f'results/{ROWS}: three seeds make a floor'
    return statistics.mean(measured) - 3 * statistics.stdev(measured)


def main():
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, 'train.py', '--model', 'bcl_resnet20', '--dataset', 'digits_lt',
            '--output', folder, '--experiment', 'demo', '--val-interval', '5',
        ]
        subprocess.run(command, cwd=ROOT, check=True)
        metrics = json.loads(Path(folder, 'demo', 'metrics.json').read_text())
        accuracy = metrics['last']['all']
        export = Path(folder, 'demo', 'export')
        subprocess.run([sys.executable, '-c', _RELOAD, str(export)], cwd=ROOT, check=True)
        subprocess.run([sys.executable, 'validate.py', '--model', f'local-dir:{export}'], cwd=ROOT, check=True)
    print(f'accuracy {accuracy:.2f}, floor {floor():.2f}: {"ok" if accuracy >= floor() else "TOO LOW"}')
    sys.exit(accuracy < floor())


if __name__ == '__main__':
    main()
