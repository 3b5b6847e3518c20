//go:build linux && amd64

package coretest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ShiftClock sets the wall clock of one running process off by so much, rounded to seconds; zero sets it
// right. Its monotonic clock is left alone, and so are all other processes, its children among them.
//
// Go asks the kernel for the time through the vDSO, a page of code that the kernel maps into each process.
// The process's own copy of that code is changed, as a debugger sets a breakpoint: what clock_gettime says
// of CLOCK_REALTIME is added to. So the program under test is the one that is shipped. libfaketime cannot
// do this, for it needs libc; a time namespace shifts monotonic clocks only.
func ShiftClock(pid int, by time.Duration) error {
	if err := shiftClock(pid, by); err != nil {
		return fmt.Errorf("shift the clock of process %d: %w", pid, err)
	}
	return nil
}

func shiftClock(pid int, by time.Duration) error {
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = mem.Close() }()
	base, code, err := vdso(pid, mem)
	if err != nil {
		return err
	}
	image, err := elf.NewFile(bytes.NewReader(code))
	if err != nil {
		return fmt.Errorf("read the vDSO: %w", err)
	}
	symbols, err := image.DynamicSymbols()
	if err != nil {
		return fmt.Errorf("read the vDSO's symbols: %w", err)
	}
	entry := int64(-1)
	for _, s := range symbols {
		if s.Name == "__vdso_clock_gettime" {
			entry = int64(s.Value)
		}
	}
	if entry < 0 || entry+jumpSize > int64(len(code)) {
		return errors.New("the vDSO has no clock_gettime")
	}
	shifted := shiftedGettime(int64(by / time.Second))
	// The end of its last page is not used; what was shifted before is found there.
	cave := int64(len(code) - len(shifted))
	old := code[cave:]
	if !bytes.Equal(old, make([]byte, len(shifted))) && !bytes.HasPrefix(old, shifted[:callSize]) {
		return errors.New("the vDSO leaves no room")
	}
	jump := binary.LittleEndian.AppendUint32([]byte{0xe9}, uint32(cave-entry-jumpSize))
	return stopped(pid, uint64(base+entry), func() error {
		if _, err := mem.WriteAt(shifted, base+cave); err != nil {
			return err
		}
		_, err := mem.WriteAt(jump, base+entry)
		return err
	})
}

// vdso reads the process's vDSO and says where it is.
func vdso(pid int, mem *os.File) (base int64, code []byte, err error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, nil, err
	}
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		if !strings.HasSuffix(strings.TrimSpace(line), "[vdso]") {
			continue
		}
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err != nil {
			return 0, nil, fmt.Errorf("read the process's maps: %w", err)
		}
		code = make([]byte, to-from)
		_, err = mem.ReadAt(code, from)
		return from, code, err
	}
	return 0, nil, errors.New("it has no vDSO")
}

const (
	jumpSize = 5 // of a jump's instruction
	callSize = 13
)

// shiftedGettime is clock_gettime(clock, to) in machine code: the system call itself, and seconds added to
// what it says of clock 0, the wall clock.
func shiftedGettime(seconds int64) []byte {
	code := []byte{
		0xb8, 0xe4, 0x00, 0x00, 0x00, // mov eax, 228 (clock_gettime)
		0x0f, 0x05, // syscall
		0x85, 0xff, // test edi, edi
		0x75, 0x0d, // jne to the return
		0x48, 0xb9, // mov rcx, seconds
	}
	code = binary.LittleEndian.AppendUint64(code, uint64(seconds))
	return append(code,
		0x48, 0x01, 0x0e, // add [rsi], rcx
		0xc3, // ret
	)
}

// stopped calls do while the process stands still with no thread within the bytes from at that become a
// jump.
func stopped(pid int, at uint64, do func() error) error {
	for range 100 {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			return err
		}
		busy, err := within(pid, at)
		if err == nil && !busy {
			err = do()
		}
		if e := syscall.Kill(pid, syscall.SIGCONT); err != nil || e != nil {
			return errors.Join(err, e)
		}
		if !busy {
			return nil
		}
	}
	return errors.New("it is always asking for the time")
}

// within waits until each thread stands still and reports whether one is at the place.
func within(pid int, at uint64) (bool, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil || len(tasks) == 0 {
		return false, fmt.Errorf("list its threads: %w", err)
	}
	for _, task := range tasks {
		if err := awaitStop(task); err != nil {
			return false, err
		}
		text, err := os.ReadFile(filepath.Join(task, "syscall"))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // it ended
		}
		if err != nil {
			return false, err
		}
		fields := strings.Fields(string(text))
		pc, err := strconv.ParseUint(strings.TrimPrefix(fields[len(fields)-1], "0x"), 16, 64)
		if err != nil {
			return false, fmt.Errorf("a thread does not stand still: %s", text)
		}
		if pc > at && pc < at+jumpSize {
			return true, nil
		}
	}
	return false, nil
}

func awaitStop(task string) error {
	for range 2000 {
		text, err := os.ReadFile(filepath.Join(task, "stat"))
		if err != nil {
			return nil //nolint:nilerr // a thread that ended is no thread
		}
		if _, rest, ok := strings.Cut(string(text), ") "); ok && (rest[0] == 'T' || rest[0] == 't') {
			return nil
		}
		time.Sleep(time.Millisecond)
	}
	return errors.New("it does not stop")
}
