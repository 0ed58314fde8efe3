package save

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// layouts are the strftime directives of Python that Go's time layouts can say.
var layouts = map[byte]string{
	'a': "Mon", 'A': "Monday", 'b': "Jan", 'B': "January", 'd': "02", 'm': "01", 'y': "06", 'Y': "2006", 'H': "15", 'I': "03",
	'p': "PM", 'M': "04", 'S': "05", 'z': "-0700", 'Z': "MST", 'j': "002", 'F': "2006-01-02", 'T': "15:04:05", 'R': "15:04",
	'D': "01/02/06", 'e': "_2", 'h': "Jan", 'c': "Mon Jan _2 15:04:05 2006", 'x': "01/02/06", 'X': "15:04:05",
}

// computed are the others.
var computed = map[byte]func(time.Time) string{
	'%': func(time.Time) string { return "%" },
	'f': func(t time.Time) string { return fmt.Sprintf("%06d", t.Nanosecond()/1000) },
	's': func(t time.Time) string { return strconv.FormatInt(t.Unix(), 10) },
	'w': func(t time.Time) string { return strconv.Itoa(int(t.Weekday())) },
	'u': func(t time.Time) string { return strconv.Itoa((int(t.Weekday())+6)%7 + 1) },
	'U': func(t time.Time) string { return fmt.Sprintf("%02d", (t.YearDay()+6-int(t.Weekday()))/7) },
	'W': func(t time.Time) string { return fmt.Sprintf("%02d", (t.YearDay()+6-(int(t.Weekday())+6)%7)/7) },
	'G': func(t time.Time) string {
		year, _ := t.ISOWeek()
		return fmt.Sprintf("%04d", year)
	},
	'V': func(t time.Time) string {
		_, week := t.ISOWeek()
		return fmt.Sprintf("%02d", week)
	},
}

// formatTime replaces the directives in pattern, as strftime does in the C locale (FMT-save-rotate).
// Unknown ones stay as they are.
func formatTime(pattern string, t time.Time) string {
	if !strings.Contains(pattern, "%") {
		return pattern
	}
	var b strings.Builder
	for i := 0; i < len(pattern); i++ {
		if pattern[i] != '%' || i+1 == len(pattern) {
			b.WriteByte(pattern[i])
			continue
		}
		i++
		if layout, ok := layouts[pattern[i]]; ok {
			b.WriteString(t.Format(layout))
		} else if compute, ok := computed[pattern[i]]; ok {
			b.WriteString(compute(t))
		} else {
			b.WriteString(pattern[i-1 : i+1])
		}
	}
	return b.String()
}

// checkTime refuses directives that formatTime does not know.
func checkTime(pattern string) error {
	for i := 0; i < len(pattern); i++ {
		if pattern[i] != '%' {
			continue
		}
		i++
		if i == len(pattern) {
			return fmt.Errorf("the file name ends in %%: write %%%% for a percent sign")
		}
		_, isLayout := layouts[pattern[i]]
		_, isComputed := computed[pattern[i]]
		if !isLayout && !isComputed {
			return fmt.Errorf("%%%c is no strftime directive: write %%%% for a percent sign", pattern[i])
		}
	}
	return nil
}
