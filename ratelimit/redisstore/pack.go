package redisstore

import (
	"encoding/binary"
	"math"
	"strconv"
	"time"

	"mainstay.dev/mainstay/ratelimit"
)

// The operations of decide.lua.
const (
	opTake = iota + 1
	opRefund
	opCharge
	opRestore
)

// Sizes of what pack writes.
const (
	headSize  = 1 + 3*8
	checkSize = 2 + 6*8
	debtSize  = 3 * 8
)

// pack writes the script's argument: numbers as big-endian doubles, which is what
// Lua counts in and one call of its struct library reads.
func pack(op byte, now, at int64, lease uint64, checks []ratelimit.Check, debts []ratelimit.Debt) string {
	b := make([]byte, 0, headSize+len(checks)*checkSize+len(debts)*debtSize)
	b = number(append(b, op), now)
	b = number(b, int64(lease))
	b = number(b, at)
	for i := range checks {
		c := &checks[i]
		shadow := byte(0)
		if c.Shadow {
			shadow = 1
		}
		window := int64(c.Limit.Window / time.Microsecond)
		b = append(b, byte(c.Limit.Family()), shadow)
		b = number(b, c.Cost)
		b = number(b, c.Limit.Max)
		b = number(b, window)
		b = number(b, int64(c.Limit.Grain()/time.Microsecond))
		b = number(b, (window+c.Limit.Max-1)/c.Limit.Max)
		b = number(b, c.Limit.Burst)
		if debts != nil {
			b = number(b, debts[i].Used)
			b = number(b, int64(debts[i].Reset/time.Microsecond))
			b = number(b, debts[i].Add)
		}
	}
	return string(b)
}

func number(b []byte, n int64) []byte {
	return binary.BigEndian.AppendUint64(b, math.Float64bits(float64(n)))
}

// family is the letter of a family in a Redis key.
var family = [...]byte{ratelimit.Window: 'w', ratelimit.GCRA: 'g', ratelimit.Concurrency: 'c'}

// name is the Redis key of a counter: prefix, the check's key, and what else tells
// counters apart.
func (s *Store) name(c *ratelimit.Check) string {
	b := make([]byte, 0, len(s.prefix)+len(c.Key)+20)
	b = append(b, s.prefix...)
	b = append(b, c.Key...)
	b = append(b, ':', family[c.Limit.Family()])
	b = strconv.AppendInt(b, int64(c.Limit.Window/time.Microsecond), 10)
	return string(b)
}
