package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// streamServer echoes lines over TCP, each with the pod's name and version in
// front. A greeting one speaks first, as MySQL and SMTP servers do.
type streamServer struct {
	greets bool

	mu       sync.Mutex
	address  string
	listener net.Listener
	closing  bool
	conns    map[net.Conn]bool
	reopened chan net.Listener
	stopped  chan struct{}
}

func newStreamServer(greets bool) *streamServer {
	return &streamServer{
		greets:   greets,
		conns:    map[net.Conn]bool{},
		reopened: make(chan net.Listener, 1),
		stopped:  make(chan struct{}),
	}
}

// serve accepts until shutdown. While the port is closed by open(false) it
// waits to be opened again.
func (s *streamServer) serve(l net.Listener) error {
	s.mu.Lock()
	s.listener, s.address = l, l.Addr().String()
	closing := s.closing
	s.mu.Unlock()
	if closing { // before it began
		_ = l.Close()
		return net.ErrClosed
	}
	for {
		c, err := l.Accept()
		if err == nil {
			go s.handle(c)
			continue
		}
		if !errors.Is(err, net.ErrClosed) {
			return err
		}
		select {
		case l = <-s.reopened:
		case <-s.stopped:
			return err
		}
	}
}

// open closes or opens the listening port; connections are left alone.
func (s *streamServer) open(open bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.address == "" || s.closing || open == (s.listener != nil):
		return nil
	case !open:
		err := s.listener.Close()
		s.listener = nil
		return err
	}
	l, err := net.Listen("tcp", s.address)
	if err != nil {
		return fmt.Errorf("listening again: %w", err)
	}
	s.listener = l
	s.reopened <- l
	return nil
}

func (s *streamServer) handle(c net.Conn) {
	s.mu.Lock()
	s.conns[c] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
		c.Close()
	}()
	me := self()
	prefix := me.Pod + " " + me.Version + " "
	if s.greets {
		if _, err := io.WriteString(c, prefix+"hello\n"); err != nil {
			return
		}
	}
	r := bufio.NewReader(c)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		if _, err := io.WriteString(c, prefix+line); err != nil {
			return
		}
	}
}

// shutdown closes the port, and the connections too: a line echo has no end of
// its own to wait for.
func (s *streamServer) shutdown(context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closing = true
	if s.listener != nil {
		_ = s.listener.Close()
	}
	close(s.stopped)
	for c := range s.conns {
		_ = c.Close()
	}
}
