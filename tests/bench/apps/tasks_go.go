// tasks_go ADDRESS go|go_stream worker NAME, or: producer RUN COUNT. The work of the task queue with redigo: with the functions
// that examples/11_apps/06_task_queue.c has loaded into Redis, or with a stream alone. As there, a worker takes up to 500
// tasks, runs each at once with the others, and reports those that are done in batches while it takes the next.
package main

import (
	"fmt"
	"log"
	"os"
	"strconv"
	"sync"

	"github.com/gomodule/redigo/redis"
)

const (
	slots  = 500
	lease  = 5000
	stream = "tasks:ready:0"
)

type task struct {
	priority, entry, id, run, kind, data string
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func dial(address string) redis.Conn {
	c, err := redis.Dial("tcp", address)
	must(err)
	return c
}

// A queue: how tasks are added, taken and reported.
type queue interface {
	add(c redis.Conn, ids []string)
	take(c redis.Conn, name string) []task
	finish(c redis.Conn, name string, tasks []task)
}

type functions struct{}

func (functions) add(c redis.Conn, ids []string) {
	arguments := redis.Args{"tasks_add", 1, "tasks"}
	for _, id := range ids {
		arguments = arguments.Add(id, "noop", "", "", "", 0, 5, 0, 0)
	}
	_, err := c.Do("FCALL", arguments...)
	must(err)
}

func (functions) take(c redis.Conn, name string) []task {
	reply, err := redis.Values(c.Do("FCALL", "tasks_take", 1, "tasks", name, slots, lease))
	must(err)
	batch, err := redis.Values(reply[1], nil)
	must(err)
	tasks := make([]task, len(batch))
	for i, item := range batch {
		values, err := redis.Values(item, nil)
		must(err)
		t := &tasks[i]
		_, err = redis.Scan(values, &t.priority, &t.entry, &t.id, &t.run, &t.kind, &t.data)
		must(err)
	}
	return tasks
}

func (functions) finish(c redis.Conn, name string, tasks []task) {
	arguments := redis.Args{"tasks_finish", 1, "tasks", name}
	for _, t := range tasks {
		arguments = arguments.Add(t.priority, t.entry, t.id, t.run, "done", "", "")
	}
	_, err := c.Do("FCALL", arguments...)
	must(err)
}

type plain struct{}

func (plain) add(c redis.Conn, ids []string) {
	must(c.Send("MULTI"))
	for _, id := range ids {
		must(c.Send("XADD", stream, "*", "id", id, "kind", "noop", "data", ""))
	}
	_, err := c.Do("EXEC")
	must(err)
}

func (plain) take(c redis.Conn, name string) []task {
	reply, err := redis.Values(c.Do("XREADGROUP", "GROUP", "workers", name, "COUNT", slots, "STREAMS", stream, ">"))
	if err == redis.ErrNil {
		return nil
	}
	must(err)
	first, err := redis.Values(reply[0], nil)
	must(err)
	entries, err := redis.Values(first[1], nil)
	must(err)
	tasks := make([]task, len(entries))
	for i, item := range entries {
		entry, err := redis.Values(item, nil)
		must(err)
		fields, err := redis.Strings(entry[1], nil)
		must(err)
		tasks[i].entry, err = redis.String(entry[0], nil)
		must(err)
		tasks[i].id, tasks[i].kind, tasks[i].data = fields[1], fields[3], fields[5]
	}
	return tasks
}

func (plain) finish(c redis.Conn, name string, tasks []task) {
	entries := redis.Args{stream}
	acks := redis.Args{stream, "workers"}
	for _, t := range tasks {
		entries, acks = entries.Add(t.entry), acks.Add(t.entry)
	}
	must(c.Send("MULTI"))
	must(c.Send("XACK", acks...))
	must(c.Send("XDEL", entries...))
	must(c.Send("HINCRBY", "tasks:counters", "done", len(tasks)))
	_, err := c.Do("EXEC")
	must(err)
}

func noop(t task, done chan<- task) { done <- t }

// A goroutine for each task, and one that reports what is done, in batches of what there is.
func work(q queue, address, name string) {
	taking, reporting, waiting := dial(address), dial(address), dial(address)
	_, err := taking.Do("ZADD", "tasks:seen", 0, name)
	must(err)
	taking.Do("XGROUP", "CREATE", stream, "workers", 0, "MKSTREAM") // the others have, or not
	done := make(chan task, slots)
	go func() {
		for first := range done {
			batch := []task{first}
			for len(done) > 0 && len(batch) < slots {
				batch = append(batch, <-done)
			}
			q.finish(reporting, name, batch)
		}
	}()
	for {
		tasks := q.take(taking, name)
		var running sync.WaitGroup
		for _, t := range tasks {
			running.Add(1)
			go func(t task) {
				defer running.Done()
				noop(t, done)
			}(t)
		}
		running.Wait()
		if len(tasks) == 0 {
			_, err := waiting.Do("XREAD", "COUNT", 1, "BLOCK", 100, "STREAMS", stream, "$")
			if err != redis.ErrNil {
				must(err)
			}
		}
	}
}

func produce(q queue, address string, count int, run string) {
	c := dial(address)
	for start := 0; start < count; start += slots {
		ids := []string{}
		for i := start; i < count && i < start+slots; i++ {
			ids = append(ids, fmt.Sprintf("%s-%d", run, i+1))
		}
		q.add(c, ids)
	}
}

func main() {
	if len(os.Args) < 5 {
		log.Fatal("usage: tasks_go ADDRESS go|go_stream worker NAME, or: producer RUN COUNT")
	}
	var q queue = functions{}
	if os.Args[2] == "go_stream" {
		q = plain{}
	}
	if os.Args[3] == "worker" {
		work(q, os.Args[1], os.Args[4])
	}
	count, err := strconv.Atoi(os.Args[5])
	must(err)
	produce(q, os.Args[1], count, os.Args[4])
}
