import socket
import threading

from scenarios import Running, equal, main


def _serve(program):
    server = Running(program, "127.0.0.1:0")
    host, _, port = server.read_until("until Ctrl+C").split()[2].rpartition(":")
    return server, (host, port)


def _ask(address, *packets):
    """The lines of the replies to these packets."""
    with socket.create_connection(address) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for packet in packets:
            peer.sendall(packet)
        peer.shutdown(socket.SHUT_WR)
        return peer.makefile("r", encoding="ascii").read().splitlines()


def a_line_of_up_to_80_bytes_is_answered_and_a_longer_one_refused(program):
    server, address = _serve(program)
    with server:
        for length in 0, 1, 79, 80, 81, 159, 160, 161, 240, 241, 100_000:
            reply = f"{length} bytes" if length <= 80 else "too long"
            line = b"x" * length + b"\n"
            equal(_ask(address, line + b"abc\n"), [reply, "3 bytes"], f"a line of {length} bytes")
            equal(_ask(address, line[:50], line[50:-1], b"\nabc\n" if length > 50 else b"abc\n"), [reply, "3 bytes"],
                  f"{length} bytes in three packets")


def a_long_line_without_an_end_is_refused_too(program):
    server, address = _serve(program)
    with server:
        equal(_ask(address, b"abc"), ["3 bytes"], "a short line without an end")
        for length in 81, 160, 161, 1000:
            equal(_ask(address, b"x" * length), ["too long"], f"{length} bytes without an end")


def a_client_that_sends_no_line_end_takes_no_memory(program):
    server, address = _serve(program)
    with server, socket.create_connection(address) as peer:
        def send():
            for _ in range(100):
                peer.sendall(b"x" * 1_000_000)
            peer.shutdown(socket.SHUT_WR)
        sender = threading.Thread(target=send)
        sender.start()
        equal(peer.makefile("rb").read(), b"too long\n", "the reply to 100 MB")
        sender.join()
        with open(f"/proc/{server.process.pid}/status", encoding="ascii") as status:
            peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
        equal(peak < 50_000, True, f"whether it took less than 50 MB, of which it took {peak} KB")


if __name__ == "__main__":
    main(__name__)
