// chat_go ADDRESS: rooms as those of examples/11_apps/07_chat_server.c with gorilla/websocket: a client joins them, all who
// are in one get each message in its order, and who comes gets what came after the message it has seen. One that does not
// read is dropped. There is no presence, and no limit for a user.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

const (
	historySize = 200
	mostWaiting = 512 // messages for a client
	longest     = 32768
)

type message struct {
	Type  string `json:"type"`
	Room  string `json:"room,omitempty"`
	Name  string `json:"name,omitempty"`
	Text  string `json:"text,omitempty"`
	ID    int64  `json:"id,omitempty"`
	Time  int64  `json:"time,omitempty"`
	After int64  `json:"after,omitempty"` // of a request
}

type client struct {
	conn    *websocket.Conn
	waiting chan []byte
	name    string
	rooms   map[string]*room
}

type room struct {
	lock    sync.Mutex
	members map[*client]struct{}
	history [][]byte // the newest messages; the last has the id nextID - 1
	nextID  int64
}

var (
	upgrader websocket.Upgrader
	rooms    sync.Map // of *room
)

func encode(m message) []byte {
	text, err := json.Marshal(m)
	if err != nil {
		log.Panic(err)
	}
	return text
}

func (c *client) post(text []byte) {
	select {
	case c.waiting <- text:
	default:
		c.conn.Close() // it does not read
	}
}

func (c *client) write() {
	defer c.conn.Close()
	for text := range c.waiting {
		if c.conn.WriteMessage(websocket.TextMessage, text) != nil {
			return
		}
	}
}

func (r *room) enter(c *client, m message) {
	r.lock.Lock()
	defer r.lock.Unlock()
	r.members[c] = struct{}{}
	c.post(encode(message{Type: "joined", Room: m.Room}))
	first := r.nextID - int64(len(r.history))
	for i, text := range r.history {
		if first+int64(i) > m.After {
			c.post(text)
		}
	}
}

func (r *room) say(c *client, m message) {
	r.lock.Lock()
	defer r.lock.Unlock()
	text := encode(message{Type: "said", Room: m.Room, Name: c.name, Text: m.Text, ID: r.nextID, Time: time.Now().Unix()})
	r.nextID++
	if len(r.history) == historySize {
		r.history = r.history[1:]
	}
	r.history = append(r.history, text)
	for member := range r.members {
		member.post(text)
	}
}

func (r *room) leave(c *client) {
	r.lock.Lock()
	defer r.lock.Unlock()
	delete(r.members, c)
}

func (c *client) answer(m message) {
	r := c.rooms[m.Room]
	switch {
	case m.Type == "join" && r == nil:
		if c.name == "" {
			c.name = m.Name
		}
		one, _ := rooms.LoadOrStore(m.Room, &room{members: map[*client]struct{}{}, nextID: time.Now().Unix() * 1000})
		c.rooms[m.Room] = one.(*room)
		c.rooms[m.Room].enter(c, m)
	case m.Type == "say" && r != nil:
		r.say(c, m)
	default:
		c.post(encode(message{Type: "error", Text: "Join a room, and say something there."}))
	}
}

func serve(w http.ResponseWriter, r *http.Request) {
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return // it has been told
	}
	conn.SetReadLimit(longest)
	c := &client{conn: conn, waiting: make(chan []byte, mostWaiting), rooms: map[string]*room{}}
	go c.write()
	for m := (message{}); conn.ReadJSON(&m) == nil; m = (message{}) {
		c.answer(m)
	}
	for _, r := range c.rooms {
		r.leave(c)
	}
	close(c.waiting)
}

func main() {
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("chat listens on", listener.Addr())
	http.HandleFunc("/chat", serve)
	log.Fatal(http.Serve(listener, nil))
}
