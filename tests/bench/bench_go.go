// bench_go NAME [COUNT [ARMED]]: the benchmarks of bench_conc.c with goroutines on one processor.
package main

import (
	"container/heap"
	"context"
	"fmt"
	"math/rand"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	warmUp   = 10000
	batch    = 100
	nHeap    = 100000
	nTimeout = 1024
)

var armed = 1000000
var timeouts [nTimeout]time.Duration
var timers []*time.Timer

func yielders(tasks, n int) {
	var wg sync.WaitGroup
	for i := 0; i < tasks; i++ {
		wg.Add(1)
		go func() {
			for j := 0; j < n/tasks; j++ {
				runtime.Gosched()
			}
			wg.Done()
		}()
	}
	wg.Wait()
}

func switch2(n int)    { yielders(2, n) }
func switch1000(n int) { yielders(1000, n) }

func spawnJoin(n int) {
	done := make(chan struct{})
	for i := 0; i < n; i++ {
		go func() { done <- struct{}{} }()
		<-done
	}
}

func spawnGroup(n int) {
	for i := 0; i < n; i += batch {
		var wg sync.WaitGroup
		for j := 0; j < batch; j++ {
			wg.Add(1)
			go wg.Done()
		}
		wg.Wait()
	}
}

//go:noinline
func callThatDoesNotWait() {}

func timeout(n int) {
	for i := 0; i < n; i++ {
		_, cancel := context.WithTimeout(context.Background(), time.Second)
		callThatDoesNotWait()
		cancel()
	}
}

func randomTimeout() time.Duration {
	return time.Duration((100 + 9900*rand.Float64()) * float64(time.Second))
}

func armMany() {
	for i := range timeouts {
		timeouts[i] = randomTimeout()
	}
	for i := 0; i < armed; i++ {
		timers = append(timers, time.AfterFunc(randomTimeout(), func() {}))
	}
}

func timerArm(n int) {
	for i := 0; i < n; i++ {
		time.AfterFunc(timeouts[i%nTimeout], func() {}).Stop()
	}
}

var mutex sync.Mutex

func lock(n int) {
	for i := 0; i < n; i++ {
		mutex.Lock()
		mutex.Unlock()
	}
}

// A mutex is not handed over; a channel of one token is.
func lockPass(n int) {
	token := make(chan struct{})
	go func() {
		for i := 0; i < n/2; i++ {
			<-token
			token <- struct{}{}
		}
	}()
	for i := 0; i < n/2; i++ {
		token <- struct{}{}
		<-token
	}
}

func passItems(capacity, n int) {
	items := make(chan int, capacity)
	go func() {
		for i := 0; i < n; i++ {
			items <- i
		}
	}()
	for i := 0; i < n; i++ {
		<-items
	}
}

func queue1(n int)    { passItems(1, n) }
func queue1000(n int) { passItems(1000, n) }

type intHeap []int

func (h intHeap) Len() int           { return len(h) }
func (h intHeap) Less(i, j int) bool { return h[i] < h[j] }
func (h intHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *intHeap) Push(x any)        { *h = append(*h, x.(int)) }
func (h *intHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

func priority(n int) {
	var h intHeap
	for done := 0; done < n; done += nHeap {
		for i := 0; i < nHeap; i++ {
			heap.Push(&h, rand.Int())
		}
		for i := 0; i < nHeap; i++ {
			heap.Pop(&h)
		}
	}
}

// The goroutines begin to sleep while others are still being started, so the first may end before the last began.
func sleepers(n int) {
	var wg sync.WaitGroup
	var alive, mostAlive int64
	start := time.Now()
	for i := 0; i < n; i++ {
		wg.Add(1)
		go func() {
			if now := atomic.AddInt64(&alive, 1); now > mostAlive {
				mostAlive = now
			}
			time.Sleep(time.Second)
			atomic.AddInt64(&alive, -1)
			wg.Done()
		}()
	}
	wg.Wait()
	fmt.Printf("sleepers_time %.3f s\n", time.Since(start).Seconds())
	var usage syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	fmt.Printf("sleepers_memory %.3f GB\n", float64(usage.Maxrss)*1024*1e-9)
	fmt.Printf("sleepers_count %d tasks\n", n)
	fmt.Printf("sleepers_alive %d tasks\n", mostAlive)
}

var benchmarks = []struct {
	name  string
	count int
	loop  func(n int)
}{
	{"switch2", 5000000, switch2},
	{"switch1000", 5000000, switch1000},
	{"spawn_join", 1000000, spawnJoin},
	{"spawn_group", 1000000, spawnGroup},
	{"timeout", 500000, timeout},
	{"timer_arm", 1000000, timerArm},
	{"lock", 50000000, lock},
	{"lock_pass", 5000000, lockPass},
	{"queue1", 5000000, queue1},
	{"queue1000", 20000000, queue1000},
	{"priority", 1000000, priority},
	{"sleepers", 1000000, sleepers},
}

func measure(name string, loop func(n int), count int) {
	if name == "timer_arm" {
		armMany()
	}
	loop(warmUp)
	start := time.Now()
	loop(count)
	fmt.Printf("%s %.2f ns\n", name, float64(time.Since(start).Nanoseconds())/float64(count))
}

func main() {
	runtime.GOMAXPROCS(1)
	for _, b := range benchmarks {
		if len(os.Args) < 2 {
			fmt.Println(b.name)
		} else if os.Args[1] == b.name {
			if len(os.Args) > 2 {
				b.count, _ = strconv.Atoi(os.Args[2])
			}
			if len(os.Args) > 3 {
				armed, _ = strconv.Atoi(os.Args[3])
			}
			if b.name == "sleepers" {
				sleepers(b.count)
			} else {
				measure(b.name, b.loop, b.count)
			}
			return
		}
	}
	if len(os.Args) > 1 {
		os.Exit(2)
	}
}
