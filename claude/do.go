package claude

import (
	"context"
	"net/http"
	"time"

	"mainstay.dev/mainstay/retry"
)

// A Policy says how a Go program's calls are tried again.
type Policy struct {
	retry.Policy
	// Judge says which errors are worth another try; nil: [JudgeError]. Only [Do]
	// asks it.
	Judge retry.Judge
}

// Compatible is the policy of the plane's default: up to 3 retries after 1, 2 and 4
// seconds, give or take a quarter; a wait that Claude asks for is kept to, up to a
// minute.
func Compatible() Policy {
	var c Config
	c.SetDefaults()
	return Policy{Policy: c.Retry.policy()}
}

// Do calls try, and again while its error is worth that and retries are left, and
// returns what the last try gave. It returns at once when ctx ends.
//
// To judge by status, an error must hold an answer; for the official SDK's:
//
//	p := claude.Compatible()
//	p.Judge = func(err error) (bool, time.Duration) {
//		if e, ok := errors.AsType[*anthropic.Error](err); ok {
//			return claude.JudgeResponse(e.Response)
//		}
//		return claude.JudgeError(err)
//	}
func Do[T any](ctx context.Context, p Policy, try func(context.Context) (T, error)) (T, error) {
	judge := p.Judge
	if judge == nil {
		judge = JudgeError
	}
	return retry.Do(ctx, p.Policy, judge, try)
}

// JudgeError says that connection errors are worth another try, and nothing else.
func JudgeError(err error) (again bool, after time.Duration) { return connectionError(err), 0 }

// JudgeResponse says whether an answer's status is worth another try, and how long
// the answer asks to wait before it. It looks at the head only.
func JudgeResponse(res *http.Response) (again bool, after time.Duration) {
	if res == nil {
		return false, 0
	}
	v := judge(res)
	return v.again, v.after
}
