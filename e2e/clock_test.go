package e2e

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
)

// clocksCanBeSet reports whether setClock knows the machine's instructions. On others
// the run is without that fault.
func clocksCanBeSet() bool { return runtime.GOARCH == "amd64" }

// The entry of the kernel's code in each process that tells the time
// (https://man7.org/linux/man-pages/man7/vdso.7.html).
const clockGettime = "__vdso_clock_gettime"

// shifted tells the time as the kernel does, and adds an offset in seconds to what is
// told of the wall clock (CLOCK_REALTIME, 0). The offset is the eight bytes after it.
var shifted = []byte{
	0xb8, 0xe4, 0x00, 0x00, 0x00, // mov eax, 228: clock_gettime
	0x0f, 0x05, // syscall
	0x85, 0xff, // test edi, edi
	0x75, 0x0a, // jne to the ret
	0x48, 0x8b, 0x0d, 0x06, 0x00, 0x00, 0x00, // mov rcx, [the offset]
	0x48, 0x01, 0x0e, // add [rsi], rcx
	0xc3,       // ret
	0x00, 0x00, // so that the offset is aligned, and written in one piece
}

// setClock sets the wall clock of one process of ours ahead of the machine's by the
// offset, or behind it, in whole seconds. The process runs on, its program is the one
// that users have, and nobody else's clock changes: a function that adds the offset is
// written behind the kernel's code that the process tells the time with, and Go's
// pointer to that code is set to it.
func setClock(process *os.Process, offset time.Duration) error {
	ranges, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", process.Pid))
	if err != nil {
		return err
	}
	memory, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", process.Pid), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = memory.Close() }()

	var start, end uint64
	var code []byte
	var data [][2]uint64
	for line := range strings.Lines(string(ranges)) {
		var low, high uint64
		var permissions string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &low, &high, &permissions); err != nil {
			return fmt.Errorf("reading %q: %w", line, err)
		}
		switch {
		case strings.Contains(line, "[vdso]"):
			start, end = low, high
		case permissions == "rw-p" && high < 1<<32: // variables of a program that is linked statically
			data = append(data, [2]uint64{low, high})
		}
	}
	code = make([]byte, end-start)
	if _, err := memory.ReadAt(code, int64(start)); err != nil {
		return fmt.Errorf("reading the kernel's code: %w", err)
	}
	kernels, err := address(code)
	if err != nil {
		return err
	}
	kernels += start

	// The last bytes of the code's pages are zero.
	place := len(code) - 2*len(shifted)
	there := code[place:]
	ours := bytes.HasPrefix(there, shifted)
	if !ours && len(bytes.Trim(there, "\x00")) > 0 {
		return errors.New("there is no room behind the kernel's code")
	}
	at := start + uint64(place)
	write := func(address uint64, b []byte) error {
		_, err := memory.WriteAt(b, int64(address))
		return err
	}
	if !ours {
		if err := write(at, shifted); err != nil {
			return fmt.Errorf("writing code: %w", err)
		}
	}
	if err := write(at+uint64(len(shifted)), binary.LittleEndian.AppendUint64(nil, uint64(int64(offset/time.Second)))); err != nil {
		return fmt.Errorf("writing the offset: %w", err)
	}
	if ours {
		return nil
	}
	found := 0
	for _, d := range data {
		variables := make([]byte, d[1]-d[0])
		if _, err := memory.ReadAt(variables, int64(d[0])); err != nil {
			return fmt.Errorf("reading variables: %w", err)
		}
		for i := 0; i+8 <= len(variables); i += 8 {
			if binary.LittleEndian.Uint64(variables[i:]) == kernels {
				found++
				if err := write(d[0]+uint64(i), binary.LittleEndian.AppendUint64(nil, at)); err != nil {
					return fmt.Errorf("writing a variable: %w", err)
				}
			}
		}
	}
	if found == 0 {
		return errors.New("no variable points to the kernel's code that tells the time")
	}
	return nil
}

// address is where in the kernel's code the entry is.
func address(code []byte) (uint64, error) {
	file, err := elf.NewFile(bytes.NewReader(code))
	if err != nil {
		return 0, fmt.Errorf("reading the kernel's code: %w", err)
	}
	symbols, err := file.DynamicSymbols()
	if err != nil {
		return 0, fmt.Errorf("reading the kernel's code: %w", err)
	}
	for _, s := range symbols {
		if s.Name == clockGettime {
			return s.Value, nil
		}
	}
	return 0, fmt.Errorf("the kernel's code has no %s", clockGettime)
}
