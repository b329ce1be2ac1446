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


def an_overlong_line_is_refused_and_the_next_one_is_read(program):
    server, address = _serve(program)
    with server:
        equal(_ask(address, b"SET a 1\n"), ["1"], "SET")
        for length, reply in (79, "1"), (80, "1"), (81, "ERROR line too long"), (160, "ERROR line too long"), \
                             (161, "ERROR line too long"), (100_000, "ERROR line too long"):
            line = b"GET a".ljust(length) + b"\n"
            equal(_ask(address, line + b"GET a\n"), [reply, "1"], f"a line of {length} bytes")
            equal(_ask(address, line[:50], line[50:-1], b"\nGET a\n"), [reply, "1"], f"{length} bytes in three packets")


def quit_ends_the_connection_and_errors_do_not(program):
    server, address = _serve(program)
    with server:
        equal(_ask(address, b"\nget a\nGET b\nSET a\nSET a x\nGET a 1\nADD a 1 1\nADD a 1\nQUIT\nGET a\n"),
              ["ERROR unknown command", "ERROR unknown command", "ERROR no such key",
               "ERROR SET needs a key and a number", "ERROR SET needs a key and a number", "ERROR GET needs a key",
               "ERROR ADD needs a key and a number", "1", "BYE"], "the replies")


def nc_may_ask_and_all_clients_see_the_same_entries(program):
    server, (host, port) = _serve(program)
    with server:
        for n in range(1, 4):
            done = subprocess.run(["nc", "-N", host, port], input=b"ADD visits 1\nQUIT\n", stdout=subprocess.PIPE,
                                  check=True)
            equal(done.stdout, b"%d\nBYE\n" % n, f"the replies to client {n}")


def more_entries_than_there_is_room_for_are_refused(program):
    server, address = _serve(program)
    with server:
        replies = _ask(address, b"".join(b"SET key%d 1\n" % n for n in range(101)) + b"SET key99 2\n")
        equal(replies, ["1"] * 100 + ["ERROR no room", "2"], "the replies")


def a_client_that_reads_no_replies_is_waited_for(program):
    server, address = _serve(program)
    count = 1_000_000
    with server, socket.create_connection(address) as peer:
        def send():
            peer.sendall(b"GET abcdef\n" * count)
            peer.shutdown(socket.SHUT_WR)
        sender = threading.Thread(target=send)
        sender.start()
        equal(_ask(address, b"SET abcdef 1\n"), ["1"], "another client's reply")
        replies = peer.makefile("rb").read().splitlines()
        sender.join()
        equal(len(replies), count, "replies")
        equal(set(replies) <= {b"1", b"ERROR no such key"}, True, "whether they are well-formed")


if __name__ == "__main__":
    main(__name__)
