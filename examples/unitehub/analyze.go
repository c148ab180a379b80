package main

import (
	"fmt"
	"log"
	"net/http"
	"strings"

	"github.com/anthropics/anthropic-sdk-go"
	"github.com/jackc/pgx/v5"
)

// analyze asks Claude what to do next about a contact, keeps the answer and
// returns it.
func (a *app) analyze(w http.ResponseWriter, r *http.Request, conn *pgx.Conn) {
	c, err := findContact(r, conn)
	if err != nil {
		fail(w, r, err)
		return
	}
	answer, err := a.claude.Messages.New(r.Context(), anthropic.MessageNewParams{
		Model:     anthropic.ModelClaudeHaiku4_5,
		MaxTokens: 300,
		System:    []anthropic.TextBlockParam{{Text: "You advise a salesperson. Answer with the next step, in two sentences."}},
		Messages:  []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock(describe(c)))},
	})
	if err != nil {
		log.Printf("analyze contact %d: %v", c.ID, err)
		reply(w, http.StatusBadGateway, failure{"claude", "Claude did not answer"})
		return
	}
	analysis := text(answer)
	if _, err := conn.Exec(r.Context(), `UPDATE contacts SET analysis = $2, analyzed_at = now() WHERE id = $1`, c.ID, analysis); err != nil {
		fail(w, r, err)
		return
	}
	reply(w, http.StatusOK, map[string]any{"contact_id": c.ID, "analysis": analysis, "model": answer.Model})
}

func describe(c contact) string {
	return fmt.Sprintf("Contact: %s, %s.\nStage: %s, worth $%.2f.\nNotes: %s", c.Name, c.Company, c.Stage, float64(c.ValueCents)/100, c.Notes)
}

// text is what a message says, without blocks of other kinds.
func text(m *anthropic.Message) string {
	var b strings.Builder
	for _, block := range m.Content {
		b.WriteString(block.Text)
	}
	return b.String()
}
