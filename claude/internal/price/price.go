// Package price tells what calls to the Claude API cost: exactly, to the token, from
// the usage that its answers tell; adds that up by who it was for; and keeps a daily
// ceiling.
//
// Only the Claude plane may import it.
package price

import (
	"bytes"
	"maps"
	"math"
	"slices"
	"strings"

	"mainstay.dev/mainstay/internal/setting"
)

// Date is of the shipped table, and Source is where it was read.
const (
	Date   = "2026-10-10"
	Source = "https://platform.claude.com/docs/en/about-claude/pricing"
)

// A Price is what a million tokens of a model cost, in dollars.
type Price struct {
	Input        float64 `yaml:"input" doc:"Dollars for a million input tokens that are not cached."`
	Output       float64 `yaml:"output" doc:"Dollars for a million output tokens."`
	CacheRead    float64 `yaml:"cache_read" doc:"Dollars for a million tokens read from the prompt cache; 0: a tenth of input."`
	CacheWrite   float64 `yaml:"cache_write" doc:"Dollars for a million tokens written to the prompt cache for five minutes; 0: 1.25 times input."`
	CacheWrite1h float64 `yaml:"cache_write_1h" doc:"Dollars for a million tokens written to the prompt cache for an hour; 0: twice input."`
	LongAbove    int64   `yaml:"long_above" doc:"Prompts of more tokens than this, cached or not, cost long_input and long_output times as much; 0: none do."`
	LongInput    float64 `yaml:"long_input" doc:"By how much input of a long prompt is dearer."`
	LongOutput   float64 `yaml:"long_output" doc:"By how much output of a long prompt is dearer."`
	Fast         float64 `yaml:"fast" doc:"By how much fast mode is dearer, all tokens alike; 0: not known, and such calls are booked at the standard price."`
	Batch        float64 `yaml:"batch" doc:"What the tokens of a batch's messages cost, as a share of the prices above; 0: 0.5, half of them."`
}

// Shipped is the table that comes with this version, by the beginning of the model's
// name; the longest that fits counts.
func Shipped() map[string]Price {
	usual := func(in, out float64) Price { return Price{Input: in, Output: out} }
	long := func(p Price, above int64, in, out float64) Price {
		p.LongAbove, p.LongInput, p.LongOutput = above, in, out
		return p
	}
	return map[string]Price{
		"claude-fable-5-1":  {Input: 10, Output: 50, CacheRead: 0.25},
		"claude-mythos-5-1": {Input: 10, Output: 50, CacheRead: 0.25},
		"claude-fable-5":    usual(10, 50),
		"claude-mythos-5":   usual(10, 50),
		"claude-opus-5-5":   {Input: 4, Output: 20, CacheRead: 0.2},
		"claude-opus-5":     {Input: 5, Output: 25, Fast: 2},
		"claude-opus-4-5":   usual(5, 25),
		"claude-opus-4-6":   usual(5, 25),
		"claude-opus-4-7":   usual(5, 25),
		"claude-opus-4-8":   usual(5, 25),
		"claude-opus-4":     usual(15, 75),
		"claude-3-opus":     usual(15, 75),
		"claude-sonnet-5-5": {Input: 2, Output: 10, CacheRead: 0.1},
		"claude-sonnet-5":   usual(2, 10),
		"claude-sonnet-4-6": usual(3, 15),
		"claude-sonnet-4":   long(usual(3, 15), 200_000, 2, 1.5),
		"claude-3-7-sonnet": usual(3, 15),
		"claude-3-5-sonnet": usual(3, 15),
		"claude-haiku-5-5":  long(usual(0.1, 0.5), 100_000, 5, 5),
		"claude-haiku-4-5":  usual(1, 5),
		"claude-3-5-haiku":  usual(0.8, 4),
		"claude-3-haiku":    {Input: 0.25, Output: 1.25, CacheRead: 0.03, CacheWrite: 0.3},
	}
}

// Validate notes every mistake of the price called name.
func (p Price) Validate(name string, ps *setting.Problems) {
	for key, v := range map[string]float64{"input": p.Input, "output": p.Output, "cache_read": p.CacheRead, "cache_write": p.CacheWrite, "cache_write_1h": p.CacheWrite1h, "long_input": p.LongInput, "long_output": p.LongOutput, "fast": p.Fast, "batch": p.Batch} {
		if !(v >= 0) || v > 1e5 {
			ps.Add(name+"."+key, "must be dollars for a million tokens", "try 3")
		}
	}
	if p.LongAbove < 0 {
		ps.Add(name+".long_above", "must not be negative", "use 0")
	}
}

// Usage is what a call has used.
type Usage struct {
	Model                                   string
	Input, CacheRead, CacheWrite, CacheHour int64 // CacheHour is a part of CacheWrite
	Output                                  int64
	Batch                                   bool // as a part of a batch
	Fast                                    bool // in fast mode
	Searches                                int64
}

// search is what a search of the web by the API's own tool costs beside its tokens, in
// billionths of a dollar: 10 dollars for a thousand, by the Source.
const search = 10_000_000

// half is what messages of a batch cost of the standard prices, by the Source: tokens of
// all kinds, but not searches.
const half = 0.5

// A Table knows prices. It is immutable.
type Table struct {
	names []string // the longest first
	of    map[string]rates
}

// rates are in billionths of a dollar for a token: the least price that there is comes
// to a whole number of them, and so does every sum.
type rates struct {
	input, output, read, write, hour float64
	longAbove                        int64
	longInput, longOutput, fast      float64
	batch                            float64 // share of the others
}

// Compile makes a table of the shipped one and what the file adds to it.
func Compile(own map[string]Price) *Table {
	all := Shipped()
	maps.Copy(all, own)
	t := &Table{of: map[string]rates{}}
	const nano = 1000 // of a dollar for a million, to a billionth for one
	for name, p := range all {
		if p.Batch == 0 {
			p.Batch = half
		}
		or := func(v, usual float64) float64 {
			if v == 0 {
				v = usual
			}
			return v * nano
		}
		t.names = append(t.names, name)
		t.of[name] = rates{
			input: p.Input * nano, output: p.Output * nano, read: or(p.CacheRead, p.Input/10), write: or(p.CacheWrite, p.Input*1.25), hour: or(p.CacheWrite1h, p.Input*2),
			longAbove: p.LongAbove, longInput: p.LongInput, longOutput: p.LongOutput, fast: p.Fast, batch: p.Batch,
		}
	}
	slices.SortFunc(t.names, func(a, b string) int {
		if len(a) != len(b) {
			return len(b) - len(a)
		}
		return strings.Compare(a, b)
	})
	return t
}

// find returns the rates of a model, wherever its name begins: us.anthropic.claude-….
func (t *Table) find(model string) (rates, bool) {
	for _, name := range t.names {
		if at := strings.Index(model, name); at == 0 || at > 0 && model[at-1] == '.' {
			rest := model[at+len(name):]
			if rest == "" || rest[0] == '-' || rest[0] == '@' || rest[0] == ':' {
				return t.of[name], true
			}
		}
	}
	return rates{}, false
}

// Cost returns what u costs, in billionths of a dollar; false: the model's price is
// not known.
func (t *Table) Cost(u Usage) (nano int64, known bool) {
	r, ok := t.find(u.Model)
	if !ok {
		return 0, false
	}
	in, out := 1.0, 1.0
	if r.longAbove > 0 && u.Input+u.CacheRead+u.CacheWrite > r.longAbove {
		in, out = r.longInput, r.longOutput
	}
	hour := min(u.CacheHour, u.CacheWrite)
	sum := in*(float64(u.Input)*r.input+float64(u.CacheRead)*r.read+float64(u.CacheWrite-hour)*r.write+float64(hour)*r.hour) + out*float64(u.Output)*r.output
	if u.Batch {
		sum *= r.batch
	}
	if u.Fast && r.fast > 0 {
		sum *= r.fast
	}
	sum += float64(u.Searches) * search
	return int64(math.Round(min(sum, math.MaxInt64/4))), true
}

// Input is about the most input tokens that a request may come to, and whether it asks
// for some to be kept for an hour. A token has two bytes at least in what people and
// programs write; an image has a few thousand tokens whatever its size, and nothing is
// longer than a million, which is the largest window there is. What a request only names
// (files, pages on the net, what tools of the API's bring) can't be told from it.
func Input(request []byte) (tokens int64, hour bool) {
	const bytesPerToken, image, window, least = 2, 5000, 1_000_000, 1024
	size := int64(len(request))
	for rest := request; ; {
		_, data, found := bytes.Cut(rest, []byte(`"data":"`))
		if !found {
			break
		}
		before := request[:len(request)-len(data)]
		end := bytes.IndexByte(data, '"')
		if end < 0 {
			break
		}
		if source := before[max(0, len(before)-100):]; end > least && bytes.Contains(source, []byte(`"image/`)) {
			size += image*bytesPerToken - int64(end)
		}
		rest = data[end:]
	}
	return min(max(size, 0)/bytesPerToken+1, window), bytes.Contains(request, []byte(`"1h"`))
}
