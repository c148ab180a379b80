package retry

import (
	"sync"
	"time"
)

// A Budget bounds retries to a share of the work, whoever does it: without one,
// retries multiply the load just when the other side can bear the least. Its methods
// may be called from many goroutines.
type Budget struct {
	share, floor, most float64

	mu      sync.Mutex
	balance float64
	at      time.Time // of the balance
}

// NewBudget returns a budget that earns share of a retry with each first try and
// floor retries a second besides, for those who do little work, and that saves up
// what ten seconds of floor bring, or at least ten retries.
func NewBudget(share, floor float64) *Budget {
	most := max(10, 10*floor)
	return &Budget{share: share, floor: floor, most: most, balance: most, at: time.Now()}
}

// Earn counts a first try.
func (b *Budget) Earn() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.balance = min(b.balance+b.share, b.most)
}

// Spend takes one retry; false: the budget is spent for now.
func (b *Budget) Spend() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.balance = min(b.balance+b.floor*now.Sub(b.at).Seconds(), b.most)
	b.at = now
	if b.balance < 1 {
		return false
	}
	b.balance--
	return true
}
