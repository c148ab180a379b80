package edge

// route says where a request belongs. There is one app for now, so every request
// belongs to it; hosts and paths come with the second.
func (p *policy) route(r *Request) {
	r.x.Route = "app"
}
