import pytest

from hf_instruct.addresses import open_socket
from hf_instruct.errors import RunError


def test_a_port_in_use_is_an_error_that_says_what_to_do() -> None:
    with open_socket("127.0.0.1", 0) as server:
        port = server.getsockname()[1]
        with pytest.raises(RunError) as caught:
            open_socket("127.0.0.1", port)
    assert str(caught.value) == (
        f"The page cannot be served at 127.0.0.1:{port} (Address already in use). Stop what runs there, or name "
        "another port with `--port`; `--port 0` takes any free one."
    )
    open_socket("127.0.0.1", port).close()


def test_an_address_of_another_machine_is_refused() -> None:
    for host in ("203.0.113.1", "no such host"):
        with pytest.raises(RunError, match=f"`--host {host}` is no address of this machine; `--host 127.0.0.1` is"):
            open_socket(host, 0)
