"""What README.md and CONTRIBUTING.md show runs: their Python, and the names of files and options."""
import re
from pathlib import Path

import pytest

from timm_longtail.methods import _registry

ROOT = Path(__file__).parents[2]
DOCUMENTS = ('README.md', 'CONTRIBUTING.md')


def python_blocks() -> list:
    """Return each Python block of the documents as a parameter, named by its line."""
    blocks = []
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding='utf-8')
        for match in re.finditer(r'```python\n(.*?)```', text, re.DOTALL):
            # what loads the output of an earlier command is run by the tutorials
            if 'local-dir:output/' in match[1]:
                continue
            line = text.count('\n', 0, match.start()) + 2
            blocks.append(pytest.param(match[1], id=f'{document}:{line}'))
    return blocks


@pytest.mark.parametrize('code', python_blocks())
def test_python_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # examples register methods
    monkeypatch.setattr(_registry, '_METHODS', dict(_registry._METHODS))

    exec(compile(code, 'README', 'exec'), {'__name__': 'readme'})


@pytest.mark.parametrize('document', DOCUMENTS)
def test_links_lead_to_files(document):
    text = (ROOT / document).read_text(encoding='utf-8')
    links = re.findall(r'\]\((?!http)([^)#]+)', text)

    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
