package prom

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"mainstay.dev/mainstay/telemetry"
)

// A tally is what the exchanges with one combination of labels add up to. One lock over
// all of it is cheaper than a counter of its own for each: an exchange moves up to eight of them,
// and what it touches here lies in three or four cache lines.
type tally struct {
	mu sync.Mutex
	counts
}

// add counts x in. A negative count would be a bug of a plane; it must not become one of a counter
// that goes back.
func (t *tally) add(x *telemetry.Exchange, d *descs, lasting bool) {
	t.mu.Lock()
	t.total++
	t.received += max(0, x.BytesIn)
	t.sent += max(0, x.BytesOut)
	t.statements += max(0, int64(x.DB.Queries))
	t.rows += max(0, x.DB.Rows)
	if !lasting {
		t.took.add(x.Took, d.bounds)
	}
	if x.Waited > 0 {
		t.waited.add(x.Waited, d.bounds)
	}
	if x.FirstByte > 0 && d.first != nil {
		t.first.add(x.FirstByte, d.bounds)
	}
	t.mu.Unlock()
}

// counts are the figures of a tally.
type counts struct {
	total, received, sent, statements, rows int64
	created                                 int64 // Unix time in nanoseconds
	took, waited, first                     spread
}

// A spread is a histogram of durations.
type spread struct {
	count   uint64
	sum     time.Duration
	buckets [maxBuckets]uint64 // not cumulative
}

// maxBuckets is room for the buckets of every plane.
const maxBuckets = 18

func (s *spread) add(d time.Duration, bounds []time.Duration) {
	s.count++
	s.sum += d
	for i, bound := range bounds {
		if d <= bound {
			s.buckets[i]++
			return
		}
	}
}

func (s *spread) join(o *spread) {
	s.count += o.count
	s.sum += o.sum
	for i, n := range o.buckets {
		s.buckets[i] += n
	}
}

// cumulative returns the buckets as Prometheus counts them.
func (s *spread) cumulative(bounds []float64) map[float64]uint64 {
	all, below := make(map[float64]uint64, len(bounds)), uint64(0)
	for i, bound := range bounds {
		below += s.buckets[i]
		all[bound] = below
	}
	return all
}

func (c *counts) join(o *counts) {
	c.total += o.total
	c.received += o.received
	c.sent += o.sent
	c.statements += o.statements
	c.rows += o.rows
	if c.created == 0 || o.created < c.created {
		c.created = o.created
	}
	c.took.join(&o.took)
	c.waited.join(&o.waited)
	c.first.join(&o.first)
}

// read returns the figures of one moment.
func (t *tally) read() counts {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.counts
}

// descs are what a plane's tallies are shown as; nil: not by this plane.
type descs struct {
	total, took, waited, first, received, sent, statements, rows *prometheus.Desc
	buckets                                                      []float64 // in seconds
	bounds                                                       []time.Duration
}

func newDescs(name, thing string) descs {
	of := func(name string) *prometheus.Desc {
		m := described(name)
		return prometheus.NewDesc(m.Name, m.Help, m.Labels, nil)
	}
	duration := "mainstay_" + name + "_" + thing + "_duration_seconds"
	d := descs{
		total:    of("mainstay_" + name + "_" + plural(thing) + "_total"),
		took:     of(duration),
		waited:   of("mainstay_" + name + "_wait_seconds"),
		received: of("mainstay_" + name + "_received_bytes_total"),
		sent:     of("mainstay_" + name + "_sent_bytes_total"),
		buckets:  described(duration).Buckets,
	}
	if len(d.buckets) > maxBuckets { // a bug of this package, found by the first test that makes a sink
		panic("prom: metric " + duration + " has more buckets than there is room for")
	}
	for _, b := range d.buckets {
		d.bounds = append(d.bounds, time.Duration(b*1e9+.5))
	}
	if name == "pooler" {
		d.statements, d.rows = of("mainstay_pooler_statements_total"), of("mainstay_pooler_rows_total")
	} else {
		d.first = of("mainstay_" + name + "_first_byte_seconds")
	}
	return d
}

// Describe is prometheus.Collector's.
func (p *plane) Describe(out chan<- *prometheus.Desc) {
	d := &p.descs
	for _, desc := range []*prometheus.Desc{d.total, d.took, d.waited, d.first, d.received, d.sent, d.statements, d.rows} {
		if desc != nil {
			out <- desc
		}
	}
}

// Collect is prometheus.Collector's: it adds the tallies up by the labels of each metric.
func (p *plane) Collect(out chan<- prometheus.Metric) {
	type shade struct{ route, color string }
	d := &p.descs
	routes, shades := map[string]*counts{}, map[shade]*counts{}
	for k, s := range *p.known.Load() {
		c := s.tally.read()
		labels := []string{k.route, k.detail, classes[k.status], k.code, k.blame.String(), k.color}
		if p.name == "pooler" {
			labels = append(labels[:2], labels[3:]...)
		}
		count(out, d.total, c.total, &c, labels...)
		if routes[k.route] == nil {
			routes[k.route] = &counts{}
		}
		routes[k.route].join(&c)
		of := shade{k.route, k.color}
		if shades[of] == nil {
			shades[of] = &counts{}
		}
		shades[of].join(&c)
	}
	for route, c := range routes {
		count(out, d.received, c.received, c, route)
		count(out, d.sent, c.sent, c, route)
		count(out, d.statements, c.statements, c, route)
		count(out, d.rows, c.rows, c, route)
	}
	for of, c := range shades {
		for _, h := range []struct {
			desc *prometheus.Desc
			of   *spread
		}{{d.took, &c.took}, {d.waited, &c.waited}, {d.first, &c.first}} {
			if h.desc != nil {
				out <- prometheus.MustNewConstHistogramWithCreatedTimestamp(h.desc, h.of.count, h.of.sum.Seconds(), h.of.cumulative(d.buckets), time.Unix(0, c.created), of.route, of.color)
			}
		}
	}
}

// count shows a counter of c, if the plane has it.
func count(out chan<- prometheus.Metric, desc *prometheus.Desc, n int64, c *counts, labels ...string) {
	if desc != nil {
		out <- prometheus.MustNewConstMetricWithCreatedTimestamp(desc, prometheus.CounterValue, float64(n), time.Unix(0, c.created), labels...)
	}
}
