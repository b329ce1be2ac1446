"""chat_websockets.py ADDRESS: rooms as those of examples/11_apps/07_chat_server.c with websockets: a client joins them, all who
are in one get each message in its order, and who comes gets what came after the message it has seen. One that does not read
is dropped when it does not answer a ping. There is no presence, and no limit for a user."""
import asyncio
import collections
import json
import logging
import sys
import time

import websockets

HISTORY = 200
LONGEST = 32768


class Room:
    def __init__(self, name):
        self.name = name
        self.members = set()
        self.history = collections.deque(maxlen=HISTORY)  # (id, message)
        self.next_id = int(time.time()) * 1000

    def enter(self, client, after):
        """Nothing waits here: no message comes twice, and none is left out."""
        websockets.broadcast({client}, json.dumps({"type": "joined", "room": self.name}))
        for number, message in self.history:
            if number > after:
                websockets.broadcast({client}, message)
        self.members.add(client)

    def say(self, name, text):
        message = json.dumps({"type": "said", "room": self.name, "name": name, "id": self.next_id, "text": text,
                              "time": int(time.time())})
        self.history.append((self.next_id, message))
        self.next_id += 1
        websockets.broadcast(self.members, message)


ROOMS = {}


async def chat(client):
    """A connection, from its first message to its end."""
    name, joined = None, {}
    try:
        async for text in client:
            message = json.loads(text)
            kind, room = message["type"], message["room"]
            if kind == "join" and room not in joined:
                name = name or message["name"]
                if room not in ROOMS:
                    ROOMS[room] = Room(room)
                joined[room] = ROOMS[room]
                joined[room].enter(client, message.get("after", -1))
            elif kind == "say" and room in joined:
                joined[room].say(name, message["text"])
            else:
                await client.send(json.dumps({"type": "error", "text": "Join a room, and say something there."}))
    except (ValueError, KeyError, TypeError):
        await client.close(1003, "a JSON object with type and room is needed")
    except websockets.ConnectionClosed:
        pass  # it has gone
    finally:
        for room in joined.values():
            room.members.discard(client)


async def main(address):
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # without a warning for each message to a client that has gone
    host, port = address.rsplit(":", 1)
    async with websockets.serve(chat, host, int(port), max_size=LONGEST) as server:
        print("chat listens on %s:%d" % server.sockets[0].getsockname(), flush=True)
        await asyncio.Future()


asyncio.run(main(sys.argv[1]))
