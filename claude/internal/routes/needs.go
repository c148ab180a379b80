package routes

import (
	"bytes"
	"slices"
	"strconv"
	"strings"

	"mainstay.dev/mainstay/claude/internal/peek"
	"mainstay.dev/mainstay/internal/setting"
)

// Needs are what a call asks of a model beyond an answer, in the words of claude.cannot.
type Needs struct {
	words  []string
	output int64 // max_tokens
	think  int64 // of these, the budget for thinking
	input  int64 // bytes
}

// The words that are not taken from the request as they stand there.
const (
	wordPrefill  = "prefill"
	wordSampling = "sampling"
	wordSchema   = "schema"
	wordOutput   = "max_tokens"
	wordPrompt   = "prompt"
)

// mostWords bounds what is noted of one request.
const mostWords = 64

// Cannot is what models can't take, as this version knows it, by the beginning of their
// names: the longest that fits counts. Of 2026-10-10, by the documentation's pages on
// models, extended and adaptive thinking, effort and structured outputs, and its
// migration guides (https://platform.claude.com/docs/en/about-claude/models/overview).
func Cannot() map[string][]string {
	before := []string{"thinking:adaptive", "thinking:between_tools", "effort:*", "speed:fast"} // what came with 4.6 or later
	old := append(slices.Clone(before), wordSchema, "context-1m-*", wordPrompt+">200000")
	since := []string{wordPrefill, wordSampling, "thinking:enabled", "thinking:between_tools"} // what later models dropped
	alone := []string{wordPrefill, wordSampling, "thinking:enabled", "thinking:disabled", "thinking:between_tools"}
	and := func(of []string, more ...string) []string { return append(slices.Clone(of), more...) }
	return map[string][]string{
		"claude-3-":         and(old, "thinking:*", "max_tokens>4096"),
		"claude-3-5-":       and(old, "thinking:*", "max_tokens>8192"),
		"claude-3-7-sonnet": and(old, "max_tokens>128000"),
		"claude-sonnet-4":   and(before, wordSchema, "max_tokens>64000"),
		"claude-opus-4":     and(old, "max_tokens>32000"),
		"claude-opus-4-1":   and(before, "context-1m-*", "prompt>200000", "max_tokens>32000"),
		"claude-sonnet-4-5": and(before, "max_tokens>64000"),
		"claude-haiku-4-5":  and(before, "context-1m-*", "prompt>200000", "max_tokens>64000"),
		"claude-opus-4-5":   {"thinking:adaptive", "thinking:between_tools", "speed:fast", "context-1m-*", "prompt>200000", "max_tokens>64000"},
		"claude-sonnet-4-6": {wordPrefill, "thinking:between_tools", "speed:fast"},
		"claude-opus-4-6":   {wordPrefill, "thinking:between_tools"},
		"claude-opus-4-7":   alone,
		"claude-opus-4-8":   since,
		"claude-opus-5":     since,
		"claude-opus-5-5":   alone,
		"claude-sonnet-5":   and(since, "speed:fast"),
		"claude-sonnet-5-5": {wordPrefill, wordSampling, "thinking:enabled", "thinking:disabled", "speed:fast"},
		"claude-haiku-5":    and(since, "speed:fast"),
		"claude-fable-5":    alone,
		"claude-mythos-5":   alone,
	}
}

// ValidateCannot notes every mistake in own.
func ValidateCannot(own map[string][]string, ps *setting.Problems) {
	for model, words := range own {
		at := "cannot." + strconv.Quote(model)
		if model == "" || len(model) > mostModel {
			ps.Add(at, "must be the beginning of a model's name", "try claude-haiku")
		}
		for _, w := range words {
			name, limit, has := strings.Cut(w, ">")
			switch n, err := strconv.ParseInt(limit, 10, 64); {
			case w == "" || len(w) > mostModel || strings.Trim(w, letters+"-_.:/*>") != "":
				ps.Add(at, "has a word that nothing can be called", "try thinking:adaptive, effort:*, prefill, or the name of a beta")
			case has && (name != wordOutput && name != wordPrompt || err != nil || n <= 0), !has && (w == wordOutput || w == wordPrompt):
				ps.Add(at, strconv.Quote(w)+" is no bound", "try max_tokens>64000 or prompt>200000")
			}
		}
	}
}

// Abilities are what models can't take. They are immutable.
type Abilities struct{ own, known map[string][]string }

// Able makes abilities of what this version knows, and of what the file says beside and
// instead of it: where the file says anything of a model, that alone counts.
func Able(own map[string][]string) *Abilities { return &Abilities{own, Cannot()} }

// cannot is what a model can't take.
func (a *Abilities) cannot(model string) (words []string) {
	name := model
	if at := strings.LastIndex(name, "claude-"); at > 0 { // us.anthropic.claude-…
		name = name[at:]
	}
	longest := -1
	for _, of := range [...]map[string][]string{a.own, a.known} {
		for prefix, cannot := range of {
			if len(prefix) > longest && (strings.HasPrefix(name, prefix) || strings.HasPrefix(model, prefix)) {
				words, longest = cannot, len(prefix)
			}
		}
		if longest >= 0 {
			return words
		}
	}
	return nil
}

// Lacks returns what of a call's needs a model can't take, where it is asked for most
// output tokens (0: as many as the call says); empty: it takes all of them, as far as is
// known.
func (a *Abilities) Lacks(model string, n *Needs, most int64) string {
	if a == nil || n == nil {
		return ""
	}
	output := n.output
	if most > 0 {
		output = min(output, most+n.think)
	}
	for _, w := range a.cannot(model) {
		if name, limit, has := strings.Cut(w, ">"); has {
			const bytesPerToken = 4 // what surely does not fit
			bound, _ := strconv.ParseInt(limit, 10, 64)
			if name == wordOutput && output > bound || name == wordPrompt && n.input/bytesPerToken > bound {
				return w
			}
			continue
		}
		for _, need := range n.words {
			if beginning, wild := strings.CutSuffix(w, "*"); need == w || wild && strings.HasPrefix(need, beginning) {
				return need
			}
		}
	}
	return ""
}

// Ask reads what a request, with the betas that its headers name, asks of a model.
func Ask(request []byte, betas []string) *Needs {
	n := &Needs{input: size(request)}
	for _, line := range betas {
		for beta := range strings.SplitSeq(line, ",") {
			n.add(strings.TrimSpace(beta))
		}
	}
	peek.Members(request, func(key, value []byte) {
		switch string(key) {
		case "max_tokens":
			n.output, _ = peek.Count(value)
		case "thinking":
			n.inside(value, "type", "thinking:")
			peek.Members(value, func(key, value []byte) {
				if string(key) == "budget_tokens" {
					n.think, _ = peek.Count(value)
				}
			})
		case "speed":
			n.add("speed:" + peek.Text(value))
		case "output_config":
			n.inside(value, "effort", "effort:")
			peek.Members(value, func(key, value []byte) {
				if string(key) == "format" && string(value) != "null" {
					n.add(wordSchema)
				}
			})
		case "output_format":
			if string(value) != "null" {
				n.add(wordSchema)
			}
		case "temperature", "top_p":
			if string(value) != "null" && string(value) != "1" && string(value) != "1.0" {
				n.add(wordSampling)
			}
		case "top_k":
			if string(value) != "null" {
				n.add(wordSampling)
			}
		case "tools":
			peek.Elements(value, func(tool []byte) { n.inside(tool, "type", "") })
		case "messages":
			role := ""
			peek.Elements(value, func(message []byte) {
				peek.Members(message, func(key, value []byte) {
					if string(key) == "role" {
						role = peek.Text(value)
					}
				})
			})
			if role == "assistant" {
				n.add(wordPrefill)
			}
		}
	})
	return n
}

// inside adds the text of a member of object, with what it is put behind.
func (n *Needs) inside(object []byte, member, behind string) {
	peek.Members(object, func(key, value []byte) {
		if string(key) == member {
			if word := peek.Text(value); word != "" {
				n.add(behind + word)
			}
		}
	})
}

func (n *Needs) add(word string) {
	if word != "" && len(word) <= mostModel && len(n.words) < mostWords && !slices.Contains(n.words, word) {
		n.words = append(n.words, word)
	}
}

// size is the length of a request without its pictures and papers, whose bytes say
// nothing of their tokens.
func size(request []byte) int64 {
	n := int64(len(request))
	for rest := request; ; {
		_, data, found := bytes.Cut(rest, []byte(`"data":"`))
		if !found {
			return n
		}
		end := bytes.IndexByte(data, '"')
		if end < 0 {
			return n
		}
		n -= int64(end)
		rest = data[end:]
	}
}
