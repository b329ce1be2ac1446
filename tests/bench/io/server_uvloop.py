"""server_uvloop.py ADDRESS [pong|once]: the line server of server_raw.c with uvloop, as a protocol."""
import asyncio
import sys

import uvloop

ANSWER = b"+PONG\r\n"
ONCE = sys.argv[2:] == ["once"]


class Lines(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        lines = data.count(b"\n")
        if lines:
            self.transport.write(ANSWER * lines)
            if ONCE:
                self.transport.close()


async def main():
    host, port = sys.argv[1].rsplit(":", 1)
    server = await asyncio.get_running_loop().create_server(Lines, host, int(port), backlog=4096)
    print("%s:%d" % server.sockets[0].getsockname()[:2], flush=True)
    await server.serve_forever()


uvloop.install()
asyncio.run(main())
