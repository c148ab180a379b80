package capacity

import "time"

// The constants of fairness between tenants.
const (
	spare      = 0.2              // of the ordinary room, that a tenant who floods leaves to the others …
	leastSpare = 3                // … and no less than so much, up to half of it
	lately     = 10 * time.Second // tenants of the last one to two of these count
	maxTenants = 4096             // that are told apart; more are as many
	fewest     = 8                // tenants have no less than one part in so many for their share …
	few        = 2                // … and no less than so much
)

// shares knows who is inside and who has come of late, and so who has more than its
// share.
type shares struct {
	inside map[string]int
	now    map[string]struct{} // since turned
	before map[string]struct{} // in the time before that
	turned time.Time
}

// came notes that a tenant wants something.
func (s *shares) came(tenant string, now time.Time) {
	if now.Sub(s.turned) >= lately {
		if s.before = s.now; now.Sub(s.turned) >= 2*lately {
			s.before = nil
		}
		s.now, s.turned = make(map[string]struct{}, len(s.now)), now
	}
	if len(s.now) < maxTenants {
		s.now[tenant] = struct{}{}
	}
}

// tenants is how many there were of late, at least one.
func (s *shares) tenants() int { return max(len(s.now), len(s.before), 1) }

// crowds reports whether a tenant has more of a room than its share: twice what all of
// late would have each. Where nobody else has come of late, nobody does.
func (s *shares) crowds(has, room int) bool {
	n := s.tenants()
	return n > 1 && has >= max(min(2*room/n, room/2), room/fewest, few)
}

// floods reports whether so much of all that is wanted is one tenant's that it is not
// what all of them want together: twice what would be everybody's part, and a quarter at least. Of
// two, it is three quarters.
func (s *shares) floods(wants, all int) bool {
	n := s.tenants()
	return n > 1 && float64(wants) >= max(min(2/float64(n), 0.75), 0.25)*float64(all)
}

func (s *shares) enter(tenant string) {
	if s.inside == nil {
		s.inside = map[string]int{}
	}
	s.inside[tenant]++
}

func (s *shares) leave(tenant string) {
	if s.inside[tenant]--; s.inside[tenant] <= 0 {
		delete(s.inside, tenant)
	}
}
