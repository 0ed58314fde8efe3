"""The other side of interop_test.go: mitmproxy's own library reads and writes flow files.

  interop.py write OUT         write flows of every kind
  interop.py resave IN OUT     read with FlowReader, write with FlowWriter
  interop.py show IN           print what mitmproxy sees, as JSON lines
  interop.py compare A B       fail unless both files hold the same flows
  interop.py bench IN          print flows per second of writing and of reading, as JSON
"""

import base64
import copy
import datetime
import io
import json
import sys
import time
import uuid

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from mitmproxy import certs, dns, flow, http, version
from mitmproxy.io import FlowReader, FlowWriter
from mitmproxy.proxy.mode_specs import ProxyMode
from mitmproxy.test import tflow, tutils

MODES = [
    "regular", "regular@127.0.0.1:8080", "transparent", "transparent@8080", "upstream:http://proxy:3128",
    "upstream:https://[::1]:3128@9", "reverse:https://example.org", "reverse:tcp://127.0.0.1:22@2222", "socks5", "dns@53",
    "wireguard", "wireguard:/etc/wg.conf@51820", "local", "local:curl,!4711", "tun", "tun:mitm0",
]


def certificate(name):
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime(2024, 1, 1)
    built = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(42).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=99))
        .sign(key, hashes.SHA256())
    )
    return certs.Cert(built)


def secured(f):
    """Give a flow everything that TLS leaves behind."""
    leaf, ca = certificate("leaf"), certificate("ca")
    for conn in (f.client_conn, f.server_conn):
        conn.tls = True
        conn.certificate_list = [leaf, ca]
        conn.alpn, conn.alpn_offers = b"h2", [b"h2", b"http/1.1"]
        conn.cipher, conn.cipher_list = "TLS_AES_256_GCM_SHA384", ["TLS_AES_256_GCM_SHA384", "ECDHE-RSA-AES128-GCM-SHA256"]
        conn.tls_version = "TLSv1.3"
        conn.error = "later broken"
    f.client_conn.mitmcert = leaf
    f.server_conn.via = ("https", ("proxy.example", 3128))
    f.client_conn.peername = ("fe80::1%eth0", 50000, 0, 0)
    return f


def flows():
    found = tflow.tflows()
    found.append(tflow.twebsocketflow())
    found.append(tflow.twebsocketflow(err=True))
    found.append(secured(tflow.tflow(resp=True)))
    for mode in MODES:
        f = tflow.tflow(resp=tutils.tresp(content=bytes(range(256))))
        f.client_conn.proxy_mode = ProxyMode.parse(mode)
        found.append(f)
    missing = tflow.tflow(resp=True)
    missing.request.content = missing.response.content = None
    missing.request.trailers = http.Headers()
    missing.response.trailers = http.Headers(((b"T", b"\xff"), (b"t", b"")))
    missing.response.timestamp_end = missing.server_conn.via = None
    missing.server_conn = tflow.connection.Server(address=None)
    found.append(missing)
    answer = tutils.tdnsresp()
    answer.answers.append(dns.ResourceRecord("x", 65280, 1, 2**32 - 1, b"\x00\xff"))
    found.append(tflow.tdnsflow(resp=answer))
    for f in found:
        # A socket name is an address in life; only this test kit has host names there.
        if f.server_conn.sockname:
            f.server_conn.sockname = ("10.0.0.1", 22)
        # The kit's TLS facts without TLS do not exist in life either.
        for conn in (f.client_conn, f.server_conn):
            conn.tls = conn.tls_version is not None
        if f.server_conn.tls and f.server_conn.alpn is None:
            f.server_conn.alpn = b""
    edited = copy.deepcopy(found[0])
    edited.id = str(uuid.uuid4())
    edited.backup()
    edited.comment, edited.marked, edited.is_replay, edited.intercepted = "ünïcode", ":grapes:", "response", True
    edited.metadata = {"proxyauth": ("user", "pass"), "n": 2**62, "x": 1.5e-7, "nested": {"a": [None, True, "b"]}}
    edited.error = flow.Error(flow.Error.KILLED_MESSAGE, 946681207.123456)
    found.append(edited)
    return found


def load(path):
    with open(path, "rb") as file:
        return list(FlowReader(file).stream())


def plain(value):
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def save(found, out):
    writer = FlowWriter(out)
    for f in found:
        writer.add(f)


def differences(a, b, path=""):
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            yield from differences(a.get(key, "nothing"), b.get(key, "nothing"), f"{path}.{key}")
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b)):
            yield from differences(x, y, f"{path}[{i}]")
    elif a != b:
        yield f"{path}: {a!r} became {b!r}"


def meaning(f):
    """The state without what says nothing: the ID of a server that never was, IPv6 flow labels."""
    state = f.get_state()
    if not f.server_conn.address and not f.server_conn.timestamp_start:
        state["server_conn"]["id"] = None
    for conn in ("client_conn", "server_conn"):
        for name in ("peername", "sockname"):
            if state[conn][name]:
                state[conn][name] = state[conn][name][:2]
    return state


def compare(before, after):
    wrong = [] if len(before) == len(after) else [f"{len(before)} flows became {len(after)}"]
    for a, b in zip(before, after):
        wrong += [f"{a.type} flow {d}" for d in differences(meaning(a), meaning(b))]
    return wrong


def rate(action, count):
    begin = time.perf_counter()
    action()
    return count / (time.perf_counter() - begin)


def bench(path):
    found = load(path)
    times = max(1, 2000 // len(found))
    out = io.BytesIO()
    write = rate(lambda: [save(found, out) for _ in range(times)], times * len(found))
    out.seek(0)
    read = rate(lambda: sum(1 for _ in FlowReader(out).stream()), times * len(found))
    return {"write": write, "read": read}


def main(command, *args):
    assert version.FLOW_FORMAT_VERSION == 21, f"mitmproxy {version.VERSION} has format {version.FLOW_FORMAT_VERSION}"
    if command == "write":
        with open(args[0], "wb") as out:
            save(flows(), out)
    elif command == "resave":
        found = load(args[0])
        with open(args[1], "wb") as out:
            save(found, out)
    elif command == "show":
        for f in load(args[0]):
            print(json.dumps(plain(f.get_state())))
    elif command == "compare":
        if wrong := compare(load(args[0]), load(args[1])):
            sys.exit("\n".join(wrong))
    elif command == "bench":
        print(json.dumps(bench(args[0])))
    else:
        sys.exit(__doc__)


main(*sys.argv[1:])
