// web_go ADDRESS: the route /users/{id} of examples/12_projects/01_web_framework.c by net/http, with its store and JSON.
package main

import (
	"encoding/json"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
)

type user struct {
	ID    int64  `json:"id"`
	Name  string `json:"name"`
	Email string `json:"email"`
	Age   int64  `json:"age"`
}

var (
	lock  sync.Mutex
	users = []user{
		{1, "Ada", "ada@example.org", 36},
		{2, "Grace", "grace@example.org", 85},
		{3, "Edsger", "edsger@example.org", 72},
	}
)

func getUser(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.ParseInt(strings.TrimPrefix(r.URL.Path, "/users/"), 10, 64)
	if r.Method != http.MethodGet || err != nil {
		http.NotFound(w, r)
		return
	}
	lock.Lock()
	found := id >= 1 && id <= int64(len(users))
	var one user
	if found {
		one = users[id-1]
	}
	lock.Unlock()
	if !found {
		http.NotFound(w, r)
		return
	}
	text, err := json.Marshal(one)
	if err != nil {
		log.Panic(err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(text)
}

func main() {
	http.HandleFunc("/users/", getUser)
	log.Fatal(http.ListenAndServe(os.Args[1], nil))
}
