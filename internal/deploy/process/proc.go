package process

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// stat is what is needed of /proc/<pid>/stat; see proc_pid_stat(5).
type stat struct {
	pid   int
	state byte
	group int
	start uint64 // clock ticks since boot
}

// ended reports whether the process is over and merely not reaped.
func (s stat) ended() bool { return s.state == 'Z' || s.state == 'X' }

// is reports whether s is the process that w names.
func (w identity) is(s stat) bool { return s.pid == w.PID && s.start == w.Start && s.group == w.PID }

func readStat(pid int) (stat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, fmt.Errorf("read about process %d: %w", pid, err)
	}
	return parseStat(b)
}

// parseStat reads a line of /proc/<pid>/stat. The second field, the program's
// name in parentheses, may itself hold spaces and parentheses.
func parseStat(b []byte) (stat, error) {
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 1 || end < open {
		return stat{}, errors.New("a stat line without a name in parentheses")
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(b[:open])))
	rest := bytes.Fields(b[end+1:])
	if err != nil || len(rest) < 20 || len(rest[0]) != 1 {
		return stat{}, errors.New("a stat line of an unknown form")
	}
	group, err1 := strconv.Atoi(string(rest[2]))
	start, err2 := strconv.ParseUint(string(rest[19]), 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return stat{}, fmt.Errorf("a stat line of an unknown form: %w", err)
	}
	return stat{pid, rest[0][0], group, start}, nil
}

// members lists the processes of a group that have not ended.
func members(group int) []int {
	var pids []int
	dirs, _ := os.ReadDir("/proc") // no /proc was an error at the start
	for _, e := range dirs {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if st, err := readStat(pid); err == nil && st.group == group && !st.ended() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// clearOrphans kills what is left of the group of w after w itself has ended. A
// group's number is not given away while a member lives, but it might have been
// since the last one died; so only processes that still carry w's PORT are touched.
func (w identity) clearOrphans() {
	if st, err := readStat(w.PID); err == nil && !w.is(st) {
		return // the number belongs to somebody else now
	}
	port := "PORT=" + strconv.Itoa(w.Port)
	for _, pid := range members(w.PID) {
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err == nil && slices.Contains(strings.Split(string(env), "\x00"), port) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// bootID names this run of the kernel.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("tell this boot from others: %w", err)
	}
	return string(bytes.TrimSpace(b)), nil
}

// keepLogs is how many files of output are kept besides those in use.
const keepLogs = 10

// pruneLogs removes the oldest files of output in dir but keep, and but those in
// use.
func pruneLogs(dir string, keep int, inUse map[string]bool) error {
	paths, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil {
		return err
	}
	type file struct {
		path    string
		written int64
	}
	var files []file
	for _, p := range paths {
		if info, err := os.Stat(p); err == nil && !inUse[p] {
			files = append(files, file{p, info.ModTime().UnixNano()})
		}
	}
	slices.SortFunc(files, func(a, b file) int { return cmp.Compare(b.written, a.written) })
	var errs []error
	for i := keep; i < len(files); i++ {
		errs = append(errs, os.Remove(files[i].path))
	}
	return errors.Join(errs...)
}
