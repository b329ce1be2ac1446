// pool_go NAME [COUNT]: the benchmarks of pool_conc.c with goroutines. A worker is a goroutine too: in trip, where one
// always waits for the other, both may well run on one thread, which conc's job and its task never do.
package main

import (
	"fmt"
	"os"
	"runtime"
	"sort"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	queued    = 1000
	warmUp    = 10000
	computers = 2
)

func percentile(samples []time.Duration, percent int) time.Duration {
	sort.Slice(samples, func(i, j int) bool { return samples[i] < samples[j] })
	return samples[(len(samples)-1)*percent/100]
}

func nothing() {}

// A worker that answers.
type worker struct {
	jobs chan func()
	done chan struct{}
}

func newWorker() worker {
	w := worker{make(chan func()), make(chan struct{})}
	go func() {
		for job := range w.jobs {
			job()
			w.done <- struct{}{}
		}
	}()
	return w
}

func (w worker) trip() {
	w.jobs <- nothing
	<-w.done
}

func printTrips(name string, samples []time.Duration) {
	fmt.Printf("%s %.3f us\n", name, float64(percentile(samples, 50))/1e3)
}

// One after the other, and the clock is read once for each.
func trip(n int) {
	w := newWorker()
	samples := make([]time.Duration, n)
	for i := 0; i <= n/10; i++ {
		w.trip()
	}
	before := time.Now()
	for i := range samples {
		w.trip()
		now := time.Now()
		samples[i] = now.Sub(before)
		before = now
	}
	printTrips("trip", samples)
}

func tripIdle(n int) {
	w := newWorker()
	samples := make([]time.Duration, n)
	w.trip()
	for i := range samples {
		time.Sleep(2 * time.Millisecond)
		before := time.Now()
		w.trip()
		samples[i] = time.Since(before)
	}
	printTrips("trip_idle", samples)
}

func runJobs(n int, jobs chan<- func(), wg *sync.WaitGroup) {
	wg.Add(n)
	for i := 0; i < n; i++ {
		jobs <- wg.Done
	}
	wg.Wait()
}

func jobs(n int) {
	var wg sync.WaitGroup
	queue := make(chan func(), queued)
	for i := 0; i < runtime.GOMAXPROCS(0); i++ {
		go func() {
			for job := range queue {
				job()
			}
		}()
	}
	runJobs(warmUp, queue, &wg)
	start := time.Now()
	runJobs(n, queue, &wg)
	fmt.Printf("jobs %.4f us\n", float64(time.Since(start).Nanoseconds())/1e3/float64(n))
}

func beat(name string, milliseconds int) {
	var late []time.Duration
	now := time.Now()
	end := now.Add(time.Duration(milliseconds) * time.Millisecond)
	for now.Before(end) {
		time.Sleep(time.Millisecond)
		then := time.Now()
		late = append(late, then.Sub(now)-time.Millisecond)
		now = then
	}
	for _, p := range []struct {
		name    string
		percent int
	}{{"p50", 50}, {"p99", 99}, {"max", 100}} {
		fmt.Printf("%s_%s %.4f ms\n", name, p.name, float64(percentile(late, p.percent))/1e6)
	}
}

func beatIdle(milliseconds int) {
	newWorker().trip()
	beat("beat_idle", milliseconds)
}

var computing, stop int32
var sink uint32

func compute() {
	x := uint32(1)
	atomic.AddInt32(&computing, 1)
	for atomic.LoadInt32(&stop) == 0 {
		for i := 0; i < 1000; i++ {
			x = x*1664525 + 1013904223
		}
	}
	atomic.AddUint32(&sink, x)
	atomic.AddInt32(&computing, -1)
}

func beatThreads(milliseconds int) {
	for i := 0; i < computers; i++ {
		go compute()
	}
	for atomic.LoadInt32(&computing) < computers {
		time.Sleep(time.Millisecond)
	}
	beat("beat_threads", milliseconds)
	atomic.StoreInt32(&stop, 1)
	for atomic.LoadInt32(&computing) > 0 {
		time.Sleep(time.Millisecond)
	}
}

var benchmarks = []struct {
	name    string
	count   int
	measure func(n int)
}{
	{"trip", 500000, trip},
	{"trip_idle", 500, tripIdle},
	{"jobs", 1000000, jobs},
	{"beat_idle", 2000, beatIdle},
	{"beat_threads", 2000, beatThreads},
}

func main() {
	for _, b := range benchmarks {
		if len(os.Args) < 2 {
			fmt.Println(b.name)
		} else if os.Args[1] == b.name {
			if len(os.Args) > 2 {
				b.count, _ = strconv.Atoi(os.Args[2])
			}
			b.measure(b.count)
			return
		}
	}
	if len(os.Args) > 1 {
		os.Exit(2)
	}
}
