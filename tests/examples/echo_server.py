import os
import socket
import subprocess
import threading
from signal import SIGINT

from scenarios import Running, equal, main

BYTES = bytes(range(256)) * 4096  # 1 MiB


def _serve(program, address="127.0.0.1:0"):
    server = Running(program, address)
    host, _, port = server.read_until("until Ctrl+C").split()[2].rpartition(":")
    return server, host, port


def _talk(*command, data=BYTES):
    done = subprocess.run(command, input=data, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    equal((done.returncode, len(done.stdout), done.stdout == data), (0, len(data), True),
          f"{command[0]}: exit status, bytes that came back, and whether they are the same")


def nc_gets_back_what_it_sends_before_it_closes_its_half(program):
    server, host, port = _serve(program)
    with server:
        _talk("nc", "-N", host, port)
        _talk("nc", "-N", host, port, data=b"")


def so_does_socat(program):
    server, host, port = _serve(program)
    with server:
        _talk("socat", "-t100", "-", f"TCP:{host}:{port}")


def both_do_on_a_unix_socket(program):
    path = os.path.abspath("echo.sock")
    server, _, _ = _serve(program, f"unix:{path}")
    with server:
        _talk("nc", "-NU", path)
        _talk("socat", "-t100", "-", f"UNIX:{path}")


def many_clients_at_once_each_get_their_own(program):
    server, host, port = _serve(program)
    with server:
        clients = [socket.create_connection((host, port)) for _ in range(200)]
        for number, client in enumerate(clients):
            client.sendall(b"client %d\n" % number)
        for number, client in reversed(list(enumerate(clients))):
            client.shutdown(socket.SHUT_WR)
            equal(client.makefile("rb").read(), b"client %d\n" % number, "what came back")
            client.close()


def a_client_that_does_not_read_is_waited_for_and_holds_up_nobody(program):
    server, host, port = _serve(program)
    with server, socket.create_connection((host, port)) as lazy:
        def send():
            lazy.sendall(BYTES * 64)
            lazy.shutdown(socket.SHUT_WR)
        sender = threading.Thread(target=send)
        sender.start()
        _talk("nc", "-N", host, port)
        equal(lazy.makefile("rb").read() == BYTES * 64, True, "whether 64 MiB came back")
        sender.join()


def clients_that_vanish_are_no_harm(program):
    server, host, port = _serve(program)
    with server:
        for _ in range(20):
            with socket.create_connection((host, port)) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, not an end
                client.sendall(BYTES)
        _talk("nc", "-N", host, port)


def ctrl_c_ends_it_and_hangs_up(program):
    server, host, port = _serve(program)
    with server, socket.create_connection((host, port)) as client:
        client.sendall(b"x")
        equal(client.recv(1), b"x", "what came back")
        server.kill(SIGINT)
        equal(client.recv(1), b"", "what came after that")
        equal(server.end(), (130, ""), "exit status and messages")


if __name__ == "__main__":
    main(__name__)
