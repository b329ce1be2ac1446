// server_go ADDRESS [pong|once]: the line server of server_raw.c with goroutines on one processor: bufio both ways, and
// a flush when all lines that were read are answered.
package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"runtime"
)

const size = 16384

var answer = []byte("+PONG\r\n")

func pong(c net.Conn) {
	defer c.Close()
	in, out := bufio.NewReaderSize(c, size), bufio.NewWriterSize(c, size)
	for {
		if _, err := in.ReadSlice('\n'); err != nil {
			return
		}
		if _, err := out.Write(answer); err != nil {
			return
		}
		if in.Buffered() == 0 {
			if err := out.Flush(); err != nil {
				return
			}
		}
	}
}

func once(c net.Conn) {
	defer c.Close()
	if _, err := bufio.NewReader(c).ReadSlice('\n'); err == nil {
		c.Write(answer)
	}
}

func main() {
	runtime.GOMAXPROCS(1)
	serve := pong
	if len(os.Args) > 2 && os.Args[2] == "once" {
		serve = once
	}
	listener, err := net.Listen("tcp4", os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(listener.Addr())
	for {
		if c, err := listener.Accept(); err == nil {
			go serve(c)
		}
	}
}
