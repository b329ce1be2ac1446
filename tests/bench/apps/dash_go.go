// dash_go COUNT USERS ORDERS RECOMMENDATIONS NOTIFICATIONS: the four calls of dash_conc.c with goroutines, net/http and
// encoding/json.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"sort"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const atOnce = 20

var names = []string{"users", "orders", "recommendations", "notifications"}

type answer struct {
	User  int      `json:"user"`
	Items []string `json:"items"`
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func processorTime() time.Duration {
	var use syscall.Rusage
	must(syscall.Getrusage(syscall.RUSAGE_SELF, &use))
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}

func getData(client *http.Client, url string, data *answer) {
	response, err := client.Get(url)
	must(err)
	defer response.Body.Close()
	must(json.NewDecoder(response.Body).Decode(data))
}

func getOne(client *http.Client, addresses []string, user int) int64 {
	var all sync.WaitGroup
	var data [4]answer
	for i, name := range names {
		all.Add(1)
		go func(i int, name string) {
			defer all.Done()
			getData(client, fmt.Sprintf("http://%s/%s/%d", addresses[i], name, user), &data[i])
		}(i, name)
	}
	all.Wait()
	dashboard := map[string]answer{}
	sum := int64(0)
	for i, name := range names {
		dashboard[name] = data[i]
		sum += int64(data[i].User)
	}
	_, err := json.Marshal(dashboard)
	must(err)
	return sum
}

func getAll(client *http.Client, addresses []string, first, count int) (int64, []float64) {
	var all sync.WaitGroup
	var next, sum int64
	times := make([]float64, count)
	for i := 0; i < atOnce; i++ {
		all.Add(1)
		go func() {
			defer all.Done()
			for n := int(atomic.AddInt64(&next, 1)) - 1; n < count; n = int(atomic.AddInt64(&next, 1)) - 1 {
				began := time.Now()
				atomic.AddInt64(&sum, getOne(client, addresses, first+n))
				times[n] = float64(time.Since(began)) / 1e6
			}
		}()
	}
	all.Wait()
	sort.Float64s(times)
	return sum, times
}

func main() {
	count, err := strconv.Atoi(os.Args[1])
	must(err)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 2 * atOnce}}
	getAll(client, os.Args[2:6], count, count)
	wall, processor := time.Now(), processorTime()
	sum, times := getAll(client, os.Args[2:6], 0, count)
	took, used := time.Since(wall), processorTime()-processor
	fmt.Printf("%.3f %.3f %d/%d %.3f %.3f\n", float64(took)/1e6, float64(used)/1e6, count, sum, times[(count-1)*50/100],
		times[(count-1)*99/100])
}
