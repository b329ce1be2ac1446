import socket
import subprocess
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


def a_line_in_three_packets_and_three_lines_in_one_are_the_same_lines(program):
    server, address = _serve(program)
    with server:
        equal(_ask(address, b"SET a 3\nADD a 4\nGET a\n"), ["3", "7", "7"], "in one packet")
        equal(_ask(address, b"SET a", b" 3", b"\nADD a 4\n", b"GE", b"T", b" a\n"), ["3", "7", "7"], "in pieces")
        equal(_ask(address, *[b"%c" % byte for byte in b"SET a 3\nADD a 4\nGET a\n"]), ["3", "7", "7"], "by bytes")
        equal(_ask(address, b"SET a 3\r\nADD a 4\r\nGET a\r\n"), ["3", "7", "7"], "as telnet sends them")
        equal(_ask(address, b"SET a 3\nADD a 4\nGET a"), ["3", "7", "7"], "without the last line end")


def quit_ends_the_connection_and_errors_do_not(program):
    server, address = _serve(program)
    with server:
        wrong = b"", b"get a", b"SET a", b"SET a x", b"GET", b"GET 1", b"GET A", b"ADD a", b"GETX a", b"GET a 1"
        for line in wrong:
            equal(_ask(address, line + b"\nADD b 1\nQUIT\nGET b\n")[::2], ["ERROR", "BYE"], f"the replies to {line}")
        equal(_ask(address, b"GET b\n"), [f"{len(wrong)}"], "what was added")


def nc_may_ask_and_all_clients_see_the_same_entries(program):
    server, (host, port) = _serve(program)
    with server:
        for n in range(1, 4):
            done = subprocess.run(["nc", "-N", host, port], input=b"ADD v 1\nQUIT\n", stdout=subprocess.PIPE,
                                  check=True)
            equal(done.stdout, b"%d\nBYE\n" % n, f"the replies to client {n}")


def each_letter_has_a_number(program):
    server, address = _serve(program)
    letters = "abcdefghijklmnopqrstuvwxyz"
    with server:
        _ask(address, "".join(f"SET {letter} {n}\n" for n, letter in enumerate(letters)).encode())
        equal(_ask(address, "".join(f"GET {letter}\n" for letter in letters).encode()),
              [f"{n}" for n in range(26)], "the replies")


def a_client_that_reads_no_replies_is_waited_for(program):
    server, address = _serve(program)
    count = 1_000_000
    with server, socket.create_connection(address) as peer:
        def send():
            peer.sendall(b"GET a\n" * count)
            peer.shutdown(socket.SHUT_WR)
        sender = threading.Thread(target=send)
        sender.start()
        equal(_ask(address, b"SET a 1\n"), ["1"], "another client's reply")
        replies = peer.makefile("rb").read().splitlines()
        sender.join()
        equal(len(replies), count, "replies")
        equal(set(replies) <= {b"0", b"1"}, True, "whether they are well-formed")


if __name__ == "__main__":
    main(__name__)
