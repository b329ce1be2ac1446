// sql_go URL COUNT: the work of sql_conc.c with goroutines, and the pool of database/sql on lib/pq. The statement is
// prepared once on each connection, as otherwise lib/pq prepares it each time, which costs a second round trip.
package main

import (
	"database/sql"
	"fmt"
	"log"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	_ "github.com/lib/pq"
)

const (
	connections = 10
	insert      = "INSERT INTO payments VALUES ($1, $2) RETURNING amount"
	check       = "SELECT count(*), sum(amount) FROM payments WHERE id <= $1"
)

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

func payAll(pay *sql.Stmt, count, first int) int {
	var all sync.WaitGroup
	amounts := make([]int, count)
	for i := range amounts {
		all.Add(1)
		go func(i int) {
			defer all.Done()
			id := first + i
			must(pay.QueryRow(id, id%1000).Scan(&amounts[i]))
		}(i)
	}
	all.Wait()
	sum := 0
	for _, amount := range amounts {
		sum += amount
	}
	return sum
}

func main() {
	count, err := strconv.Atoi(os.Args[2])
	must(err)
	db, err := sql.Open("postgres", os.Args[1])
	must(err)
	db.SetMaxOpenConns(connections)
	db.SetMaxIdleConns(connections)
	_, err = db.Exec("TRUNCATE payments")
	must(err)
	pay, err := db.Prepare(insert)
	must(err)
	payAll(pay, count, count+1)
	wall, processor := time.Now(), processorTime()
	sum := payAll(pay, count, 1)
	took, used := time.Since(wall), processorTime()-processor
	var rows, amounts int
	must(db.QueryRow(check, count).Scan(&rows, &amounts))
	if rows != count || amounts != sum {
		log.Fatalf("the table has %d rows", rows)
	}
	fmt.Printf("%.3f %.3f %d/%d\n", float64(took)/1e6, float64(used)/1e6, count, sum)
}
