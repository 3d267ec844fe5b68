package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// spread is a distribution of durations in milliseconds.
type spread struct {
	N   int     `json:"n"`
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

func spreadOf(values []float64) *spread {
	if len(values) == 0 {
		return nil
	}
	slices.Sort(values)
	at := func(q float64) float64 { return values[min(int(q*float64(len(values))), len(values)-1)] }
	return &spread{N: len(values), P50: at(.5), P99: at(.99), Max: values[len(values)-1]}
}

// hertz is in what fractions of a second Linux counts CPU time (USER_HZ, proc(5)).
const hertz = 100

// cpu is the CPU time of a process in seconds, to 10 ms.
func cpu(pid int) float64 {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	text := string(raw)
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) < 13 {
		return 0
	}
	return (number(fields[11]) + number(fields[12])) / hertz
}

// busy is the CPU time of the whole machine in seconds.
func busy() float64 {
	raw, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(raw), "\n")
	sum := 0.0
	// user, nice, system, (idle, iowait,) irq, softirq, steal
	for i, field := range strings.Fields(line) {
		if i >= 1 && i <= 8 && i != 4 && i != 5 {
			sum += number(field)
		}
	}
	return sum / hertz
}

// memory is what a process holds and has held at most, in MiB.
func memory(pid int) (resident, peak float64) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(raw)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "VmRSS:":
			resident = number(fields[1]) / 1024
		case "VmHWM:":
			peak = number(fields[1]) / 1024
		}
	}
	return resident, peak
}

// forgetPeak has the kernel count the peak anew (clear_refs, proc(5)).
func forgetPeak(pid int) {
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0) // without it the peak is that of the whole run
}

func number(text string) float64 {
	v, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return 0
	}
	return v
}
