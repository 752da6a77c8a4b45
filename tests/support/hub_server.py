"""A stand-in of the Hub on loopback: as much of its HTTP API as `huggingface_hub` needs to push and to load a model.

Paths, status codes and headers are those that the client expects. Repositories live in memory; a commit is a mapping of
paths to contents; weights take the way of large files (LFS: a batch request, a PUT without a token, a redirect to
another host on download). Xet, the Hub's newer storage, is not there: clients run with HF_HUB_DISABLE_XET=1.
"""
import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKENS = {'hf_alice': ('alice', 'write'), 'hf_reader': ('alice', 'read'), 'hf_bob': ('bob', 'write')}
LICENSES = ('apache-2.0', 'mit', 'cc-by-4.0')
REPO = r'(?P<repo>[\w.-]+/[\w.-]+)'

Files = dict[str, bytes]
Answer = tuple  # status, content (bytes, or an object that becomes JSON), and headers


class Refused(Exception):
    """An answer that is not a success.

    Args:
        status: Status of HTTP.
        words: Message.
        code: What `X-Error-Code` says.
        **more: Further content of the answer.
    """

    def __init__(self, status: int, words: str, code: str | None = None, **more):
        super().__init__(words)
        self.status, self.code, self.more = status, code, more


class Repository:
    """Commits by hash, each a mapping path -> content, and branches that name one."""

    def __init__(self, private: bool, large: bool):
        self.private, self.large = private, large
        self.commits: dict[str, Files] = {}
        self.branches: dict[str, str] = {}
        self.messages: list[str] = []
        self.commit('main', {'.gitattributes': b'*.safetensors filter=lfs -text\n'}, 'initial commit')

    def commit(self, branch: str, files: Files, message: str) -> str:
        """Put a commit at the head of a branch; returns its hash."""
        self.messages.append(message)
        sha = hashlib.sha1(repr((len(self.messages), branch, message, sorted(files))).encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def find(self, revision: str) -> tuple[str, Files]:
        """Return hash and files of a branch or a commit."""
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise Refused(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
        return sha, self.commits[sha]

    def is_large(self, path: str) -> bool:
        return self.large and path.endswith('.safetensors')

    def oid(self, path: str, content: bytes) -> str:
        """Return the name by which the storage knows a content: its sha256, or git's name of the blob."""
        if self.is_large(path):
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()


class Hub:
    """The server, running inside a `with`.

    Attributes:
        url: What HF_ENDPOINT must be.
        large: Whether repositories that are created now store `*.safetensors` as large files; otherwise as any other.
        repositories: By name.
        requests: `METHOD path` of each request, in order.
    """

    def __init__(self):
        self.large = True
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.lock = Lock()
        self.port = 0  # any that is free; later, the same once more

        self.ill: str | int | None = None
        self.ill_at, self.well = '', Event()

    def __enter__(self):
        self.server = ThreadingHTTPServer(('127.0.0.1', self.port), type('Bound', (Handler,), {'hub': self}))
        self.server.daemon_threads = True
        self.port = self.server.server_port

        self.url = f'http://127.0.0.1:{self.port}'
        self.storage = f'http://localhost:{self.port}'  # another host to the client, as the Hub's is
        Thread(target=self.server.serve_forever, kwargs={'poll_interval': 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    @contextmanager
    def down(self) -> Iterator[None]:
        """Refuse connections for a while."""
        self.__exit__()
        yield
        self.__enter__()

    @contextmanager
    def sick(self, how: str | int, at: str = '') -> Iterator[None]:
        """Answer badly for a while.

        Args:
            how: `stall`, accept a request and never answer; `drip`, answer with a byte every tenth of a second; or the
                status of an error.
            at: What the request, `METHOD path`, must hold; others are answered well.
        """
        self.ill, self.ill_at, self.well = how, at, Event()
        try:
            yield
        finally:
            self.ill = None
            self.well.set()  # lets go of who still waits

    def files(self, repo: str, revision: str = 'main') -> Files:
        """Return the content of each file of a revision."""
        return self.repositories[repo].find(revision)[1]


class Handler(BaseHTTPRequestHandler):
    """One request: the first route whose pattern matches, under the hub's lock."""

    protocol_version = 'HTTP/1.1'
    hub: Hub

    def log_message(self, *args):
        pass

    def answer(self):
        """Note the request, and send what its route returns."""
        self.close_connection = True  # none is left open that would outlive `down`
        path = unquote(urlsplit(self.path).path)
        body = self.read_body()
        self.hub.requests.append(f'{self.command} {path}')
        if self.hub.ill and self.hub.ill_at in f'{self.command} {path}':
            self.answer_badly(self.hub.ill)
            return

        try:
            for method, pattern, name in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method.split():
                    with self.hub.lock:
                        self.send(*getattr(self, name)(body, **match.groupdict()))
                    return
            raise Refused(404, f'no such page: {path}')
        except Refused as e:
            headers = {'X-Error-Code': e.code, 'X-Error-Message': str(e)}
            content = {'error': str(e), 'errors': [{'message': str(e)}], **e.more}
            self.send(e.status, content, {k: v for k, v in headers.items() if v})

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def answer_badly(self, how: str | int):
        """Send an error, nothing, or a byte now and then, until the hub is well again."""
        if how not in ('stall', 'drip'):
            self.send(how, {'error': 'out of order'})
            return

        if how == 'drip':
            self.send_response(200)
            self.flush_headers()
        while not self.hub.well.wait(0.1):
            if how == 'drip':
                with suppress(OSError):  # the client has gone
                    self.wfile.write(b'x')

    def read_body(self) -> bytes:
        if self.headers.get('Transfer-Encoding') != 'chunked':
            return self.rfile.read(int(self.headers.get('Content-Length', 0)))

        body = b''
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def send(self, status: int, content: Any = b'', headers: dict[str, Any] | None = None):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        headers = {'Content-Length': len(data), 'Connection': 'close', **(headers or {})}

        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(data)

    # ------------------------------------------------------------------------------------------------ who asks

    def user(self) -> tuple[str, str] | None:
        """Return (name, role) of the token, None without one."""
        token = self.headers.get('Authorization', '').removeprefix('Bearer ')
        if token and token not in TOKENS:
            raise Refused(401, 'Invalid credentials in Authorization header')
        return TOKENS.get(token)

    def check_writer(self, namespace: str):
        user = self.user()
        if user is None:
            raise Refused(401, 'Invalid username or password.')
        if user != (namespace, 'write'):
            raise Refused(403, f'You don\'t have the rights to write under the namespace "{namespace}"')

    def repository(self, repo: str, write: bool = False) -> Repository:
        """Return a repository that the user may see, and write to."""
        user = self.user()
        found = self.hub.repositories.get(repo)
        namespace, _ = repo.split('/')

        is_owner = user is not None and user[0] == namespace
        if found is None or (found.private and not is_owner):
            raise Refused(404 if user else 401, 'Repository not found', 'RepoNotFound')
        if write:
            self.check_writer(namespace)
        return found

    # ------------------------------------------------------------------------------------------------ routes

    def whoami(self, body: bytes) -> Answer:
        user = self.user()
        if user is None:
            raise Refused(401, 'Invalid username or password.')
        return 200, {'type': 'user', 'name': user[0], 'orgs': []}

    def validate_yaml(self, body: bytes) -> Answer:
        request = json.loads(body)
        block = re.match(r'---\n(.*?)\n---', request['content'], re.DOTALL)
        if request['repoType'] != 'model' or block is None:
            raise Refused(400, 'no metadata')

        license = yaml.safe_load(block[1]).get('license')
        if license and license not in LICENSES:
            raise Refused(400, f'"license" must be one of {", ".join(LICENSES)}')
        return 200, {'errors': [], 'warnings': []}

    def create(self, body: bytes) -> Answer:
        request = json.loads(body)
        user = self.user()
        namespace = request['organization'] or (user and user[0])
        self.check_writer(namespace)

        repo = f'{namespace}/{request["name"]}'
        url = f'{self.hub.url}/{repo}'
        if repo in self.hub.repositories:
            raise Refused(409, 'You already created this model repo', url=url)
        self.hub.repositories[repo] = Repository(request.get('visibility') == 'private', self.hub.large)
        return 200, {'url': url, 'name': repo}

    def info(self, body: bytes, repo: str, revision: str | None = None) -> Answer:
        found = self.repository(repo)
        sha, files = found.find(revision or 'main')
        return 200, {
            'id': repo,
            'modelId': repo,
            'sha': sha,
            'private': found.private,
            'tags': [],
            'downloads': 0,
            'siblings': [{'rfilename': path} for path in files],
        }

    def branch(self, body: bytes, repo: str, revision: str) -> Answer:
        found = self.repository(repo, write=True)
        if revision in found.branches:
            raise Refused(409, f'Reference already exists: {revision}')
        found.branches[revision] = found.branches['main']
        return 201, {}

    def preupload(self, body: bytes, repo: str, revision: str) -> Answer:
        """Say of each file which way it is uploaded, and what is there already."""
        found = self.repository(repo, write=True)
        _, files = found.find(revision)

        answers = []
        for path in (file['path'] for file in json.loads(body)['files']):
            mode = 'lfs' if found.is_large(path) else 'regular'
            answer = {'path': path, 'uploadMode': mode, 'shouldIgnore': False}
            if path in files:
                answer['oid'] = found.oid(path, files[path])
            answers.append(answer)
        return 200, {'files': answers}

    def batch(self, body: bytes, repo: str) -> Answer:
        """Say where large files are uploaded to, those that the storage does not have."""
        self.repository(repo, write=True)
        request = json.loads(body)
        assert request['operation'] == 'upload'
        assert 'basic' in request['transfers']

        objects = []
        for asked in request['objects']:
            answer = {'oid': asked['oid'], 'size': asked['size']}
            if asked['oid'] not in self.hub.objects:
                answer['actions'] = {
                    'upload': {'href': f'{self.hub.storage}/storage/{asked["oid"]}'},
                    'verify': {'href': f'{self.hub.url}/{repo}.git/info/lfs/verify'},
                }
            objects.append(answer)
        return 200, {'transfer': 'basic', 'objects': objects}

    def verify(self, body: bytes, repo: str) -> Answer:
        self.repository(repo, write=True)
        request = json.loads(body)
        if len(self.hub.objects.get(request['oid'], b'')) != request['size']:
            raise Refused(404, 'the object did not arrive')
        return 200, {}

    def put_object(self, body: bytes, oid: str) -> Answer:
        if 'Authorization' in self.headers:
            raise Refused(400, 'a token was sent to the storage')
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(400, 'the content is not what the address says')
        self.hub.objects[oid] = body
        return 200, b'', {'ETag': f'"{oid}"'}

    def commit(self, body: bytes, repo: str, revision: str) -> Answer:
        """Apply the operations of a commit, one JSON object a line, to the files of a branch."""
        found = self.repository(repo, write=True)
        _, before = found.find(revision)
        files = dict(before)
        header, *operations = (json.loads(line) for line in body.splitlines())
        assert header['key'] == 'header'
        assert revision in found.branches

        for operation in operations:
            key, value = operation['key'], operation['value']
            if key == 'file':
                files[value['path']] = base64.b64decode(value['content'])
            elif key == 'lfsFile':
                if value['oid'] not in self.hub.objects:
                    raise Refused(400, f'{value["path"]} was not uploaded')
                files[value['path']] = self.hub.objects[value['oid']]
            else:
                assert key == 'deletedFile'
                if value['path'] not in files:
                    raise Refused(404, 'A file with this name doesn\'t exist', 'EntryNotFound')
                del files[value['path']]

        sha = found.commit(revision, files, header['value']['summary'])
        return 200, {'success': True, 'commitOid': sha, 'commitUrl': f'{self.hub.url}/{repo}/commit/{sha}'}

    def resolve(self, body: bytes, repo: str, revision: str, path: str) -> Answer:
        """Return a file, or where the storage has it."""
        found = self.repository(repo)
        sha, files = found.find(revision)
        if path not in files:
            raise Refused(404, 'Entry not found', 'EntryNotFound')

        oid = found.oid(path, files[path])
        headers = {'X-Repo-Commit': sha}
        if not found.is_large(path):
            return self.content(files[path], {**headers, 'ETag': f'"{oid}"'})
        return 302, b'', {
            **headers,
            'Location': f'{self.hub.storage}/storage/{oid}',
            'X-Linked-Etag': f'"{oid}"',
            'X-Linked-Size': len(files[path]),
        }

    def get_object(self, body: bytes, oid: str) -> Answer:
        if 'Authorization' in self.headers:
            raise Refused(400, 'a token was sent to the storage')
        return self.content(self.hub.objects[oid], {'ETag': f'"{oid}"'})

    def content(self, content: bytes, headers: dict[str, Any]) -> Answer:
        """Return a content, or the part of it that is asked for."""
        asked = re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers.get('Range', ''))
        if asked is None:
            return 200, content, {**headers, 'Accept-Ranges': 'bytes'}

        last = len(content) - 1
        start, end = int(asked[1]), min(int(asked[2] or last), last)
        return 206, content[start:end + 1], {**headers, 'Content-Range': f'bytes {start}-{end}/{len(content)}'}


ROUTES = [
    ('GET', '/api/whoami-v2', 'whoami'),
    ('POST', '/api/validate-yaml', 'validate_yaml'),
    ('POST', '/api/repos/create', 'create'),
    ('GET', f'/api/models/{REPO}(/revision/(?P<revision>.+))?', 'info'),
    ('POST', f'/api/models/{REPO}/branch/(?P<revision>.+)', 'branch'),
    ('POST', f'/api/models/{REPO}/preupload/(?P<revision>.+)', 'preupload'),
    ('POST', f'/api/models/{REPO}/commit/(?P<revision>.+)', 'commit'),
    ('POST', rf'/{REPO}\.git/info/lfs/objects/batch', 'batch'),
    ('POST', rf'/{REPO}\.git/info/lfs/verify', 'verify'),
    ('PUT', '/storage/(?P<oid>[0-9a-f]{64})', 'put_object'),
    ('GET HEAD', '/storage/(?P<oid>[0-9a-f]{64})', 'get_object'),
    ('GET HEAD', f'/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)', 'resolve'),
]
