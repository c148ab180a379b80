package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/client"

	"mainstay.dev/mainstay/internal/deploy"
	"mainstay.dev/mainstay/internal/deploy/deploytest"
	"mainstay.dev/mainstay/internal/deploy/internal/containers"
	"mainstay.dev/mainstay/internal/setting"
)

func TestTheDriverKeepsTheContract(t *testing.T) {
	e := need(t)
	for _, c := range []struct{ network, listen string }{{"bridge", "0.0.0.0"}, {"host", "127.0.0.1"}} {
		t.Run(c.network, func(t *testing.T) {
			t.Setenv("LISTEN_HOST", c.listen)
			dirs := map[string]string{}
			deploytest.Contract(t, func(t *testing.T) deploy.Driver {
				if dirs[t.Name()] == "" {
					dirs[t.Name()] = t.TempDir()
				}
				d, _ := e.driver(t, dirs[t.Name()], func(o *Options) { o.Config.Network = c.network })
				return d
			})
		})
	}
}

// begin starts a copy of testImage with words, or as the image says.
func begin(t *testing.T, d *Driver, id string, words ...string) *instance {
	t.Helper()
	color, _, _ := strings.Cut(id, "-")
	s := deploy.Spec{ID: id, Color: color, Env: []string{"COLOR=" + color}}
	if len(words) > 0 {
		s.Command = deploytest.App(words...)
	}
	in, err := d.Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Stop(context.Background(), 0) })
	return in.(*instance)
}

func TestTheContainerIsWhatTheFileAsksFor(t *testing.T) {
	e := need(t)
	data := t.TempDir()
	d, _ := e.driver(t, t.TempDir(), func(o *Options) {
		o.Config.Port = 3000
		o.Config.Env = map[string]setting.Secret{"STRIPE_KEY": "sk_1"}
		o.Config.Mounts = []containers.Mount{{Source: data, Target: "/data", ReadOnly: true}, {Source: "cache", Target: "/cache"}}
		o.Config.Memory, o.Config.CPUs, o.Config.Processes, o.Config.User = 256<<20, 0.5, 64, "1000:1000"
	})
	in := begin(t, d, "blue-1")
	if got := deploytest.Ask(t, in); got != "1 blue 3000" {
		t.Errorf("answered %q", got)
	}
	got, err := e.cli.ContainerInspect(t.Context(), in.where.Container, client.ContainerInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c, h := got.Container, got.Container.HostConfig
	for _, want := range []string{"STRIPE_KEY=sk_1", "FROM_IMAGE=yes", "COLOR=blue", "PORT=3000"} {
		if !slices.Contains(c.Config.Env, want) {
			t.Errorf("%s is not in %v", want, c.Config.Env)
		}
	}
	if c.Config.User != "1000:1000" || h.Memory != 256<<20 || h.MemorySwap != 256<<20 || h.NanoCPUs != 5e8 || *h.PidsLimit != 64 || h.Privileged {
		t.Errorf("user %s, memory %d and %d, CPUs %d, processes %d, privileged %v", c.Config.User, h.Memory, h.MemorySwap, h.NanoCPUs, *h.PidsLimit, h.Privileged)
	}
	if diff := cmp.Diff([]string{"no-new-privileges"}, h.SecurityOpt); diff != "" {
		t.Error(diff)
	}
	mounts := map[string]string{}
	for _, m := range c.Mounts {
		mounts[m.Destination] = fmt.Sprint(m.Type, " ", m.Name, " ", m.RW)
	}
	if diff := cmp.Diff(map[string]string{"/data": "bind  false", "/cache": "volume cache true"}, mounts); diff != "" {
		t.Error(diff)
	}
	labels := c.Config.Labels
	if labels[labelService] != "unite hub" || labels[labelID] != "blue-1" || labels[labelColor] != "blue" || labels[labelImage] != testImage || labels[labelStart] == "" {
		t.Errorf("labels %v", labels)
	}
	if host, _, err := net.SplitHostPort(in.Handle().Address); err != nil || host != "127.0.0.1" {
		t.Errorf("published on %s, %v", in.Handle().Address, err)
	}
	if at, err := in.Listening(); err != nil || len(at) != 1 || at[0].String() != in.Handle().Address {
		t.Errorf("listens on %v, %v", at, err)
	}
}

func TestAnAppThatTakesTooMuchMemoryIsToldAsSuch(t *testing.T) {
	d, _ := need(t).driver(t, t.TempDir(), func(o *Options) { o.Config.Memory = 32 << 20 })
	in := begin(t, d, "blue-1", "hog")
	e := deploytest.AwaitExit(t, in)
	if want := (deploy.Exit{Code: -1, Signal: "SIGKILL", OutOfMemory: true}); e != want {
		t.Errorf("exit %+v", e)
	}
	if s := e.String(); s != "killed because it took more memory than it was given" {
		t.Error(s)
	}
}

func TestAnAppThatIgnoresPORTIsTold(t *testing.T) {
	e := need(t)
	for _, c := range []struct{ network, listen, words, why, mend string }{
		{"bridge", "0.0.0.0", "serve", "", ""},
		{"bridge", "", "silent", "the app does not listen on PORT=P yet", ""},
		{"bridge", "127.0.0.1", "serve", "the app listens on 127.0.0.1:P inside its container, where nobody else can reach it", "make it listen on 0.0.0.0 "},
		{"bridge", "", "elsewhere", "the app listens on Q, not on PORT=P", "make it read PORT, or set app.docker.port: Q"},
		{"host", "127.0.0.1", "serve", "", ""},
		{"host", "", "elsewhere", "the app listens on Q, not on PORT=P", "make it read PORT"},
	} {
		t.Run(c.network+" "+c.words+" "+c.listen, func(t *testing.T) {
			d, _ := e.driver(t, t.TempDir(), func(o *Options) {
				o.Config.Network, o.Config.Env = c.network, map[string]setting.Secret{"LISTEN_HOST": setting.Secret(c.listen)}
			})
			in := begin(t, d, "blue-1", c.words)
			var other string
			deploytest.Await(t, "the app listens", func() bool {
				at, err := in.inside()
				if err != nil {
					t.Fatal(err)
				}
				if len(at) > 0 {
					other = fmt.Sprint(at[0].Port())
				}
				return len(at) > 0 || c.words == "silent"
			})
			fill := strings.NewReplacer("=P", fmt.Sprint("=", in.where.Inner), ":P", fmt.Sprint(":", in.where.Inner), "Q", other)
			why, mend := in.Explain()
			if why != fill.Replace(c.why) || !strings.HasPrefix(mend, fill.Replace(c.mend)) || (mend == "") != (c.mend == "") {
				t.Errorf("%q; %q", why, mend)
			}
		})
	}
}

func TestWhatDoesNotRunIsStoppedAllTheSame(t *testing.T) {
	e := need(t)
	for name, halt := range map[string]func(*testing.T, *instance){
		"paused": func(t *testing.T, in *instance) {
			if _, err := e.cli.ContainerPause(t.Context(), in.where.Container, client.ContainerPauseOptions{}); err != nil {
				t.Fatal(err)
			}
		},
		"stopped by a signal": func(t *testing.T, in *instance) {
			if err := syscall.Kill(in.Handle().PID, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			d, _ := e.driver(t, t.TempDir(), nil)
			in := begin(t, d, "blue-1")
			deploytest.Ask(t, in)
			halt(t, in)
			if err := in.Stop(t.Context(), 30*time.Second); err != nil {
				t.Fatal(err)
			}
			if x := in.Exit(); x != (deploy.Exit{}) {
				t.Errorf("exit %+v", x)
			}
		})
	}
}

func TestACopyThatSomebodyStopsHasEnded(t *testing.T) {
	e := need(t)
	d, j := e.driver(t, t.TempDir(), nil)
	in := begin(t, d, "blue-1")
	deploytest.Ask(t, in)
	if _, running, err := in.verdict(137); err != nil || !running {
		t.Errorf("a copy that runs is believed to have ended: %v", err)
	}
	if _, err := e.cli.ContainerStop(t.Context(), in.where.Container, client.ContainerStopOptions{}); err != nil {
		t.Fatal(err)
	}
	if x := deploytest.AwaitExit(t, in); x != (deploy.Exit{}) {
		t.Errorf("exit %+v", x)
	}
	if !strings.Contains(j.String(), "line=bye") {
		t.Errorf("its last line is not in the log: %s", j)
	}
}

func TestACopyThatSomebodyRemovesHasEnded(t *testing.T) {
	e := need(t)
	d, _ := e.driver(t, t.TempDir(), nil)
	in := begin(t, d, "blue-1")
	deploytest.Ask(t, in)
	if _, err := e.cli.ContainerRemove(t.Context(), in.where.Container, client.ContainerRemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	deploytest.AwaitExit(t, in)
	if err := in.Stop(t.Context(), time.Hour); err != nil {
		t.Error(err)
	}
}

func TestACopyLivesOnWhileTheEngineIsRestarted(t *testing.T) {
	need(t) // skips where there is none
	e := &engine{flag: []string{"--live-restore"}}
	t.Cleanup(e.stop)
	if e.start(); e.err != nil {
		t.Fatal(e.err)
	}
	d, j := e.driver(t, t.TempDir(), func(o *Options) { o.Config.Network = "host" })
	in := begin(t, d, "blue-1")
	before := deploytest.Ask(t, in)
	bridged, _ := e.driver(t, t.TempDir(), nil)
	behind := begin(t, bridged, "blue-1")
	deploytest.Ask(t, behind)
	pid, err := os.ReadFile(filepath.Join(e.dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if _, err := fmt.Sscan(string(pid), &n); err != nil || n < 2 {
		t.Fatalf("%q: %v", pid, err)
	}
	if err := syscall.Kill(n, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	deploytest.Await(t, "the Engine is away", func() bool {
		_, err := e.cli.Ping(t.Context(), client.PingOptions{})
		return err != nil
	})
	if _, err := d.Start(t.Context(), deploy.Spec{ID: "green-2", Color: "green"}); err == nil || !strings.Contains(err.Error(), "no Docker Engine answers at "+e.at) {
		t.Errorf("start without an Engine: %v", err)
	}
	if after := deploytest.Ask(t, in); after != before {
		t.Errorf("%q before, %q after", before, after)
	}
	if err := e.up(); err != nil {
		t.Fatal(err)
	}
	deploytest.Ask(t, behind) // while the Engine was away its proxy was too
	if x, y := in.Exit(), behind.Exit(); x != (deploy.Exit{}) || y != (deploy.Exit{}) {
		t.Fatalf("ended: %v, %v", x, y)
	}
	if err := in.Stop(t.Context(), 30*time.Second); err != nil {
		t.Fatal(err)
	}
	if x := in.Exit(); x != (deploy.Exit{}) {
		t.Errorf("exit %+v", x)
	}
	if n := strings.Count(j.String(), "line=serving"); n != 1 {
		t.Errorf("said serving %d times", n)
	}
}

func TestOnlyOurOwnRunningContainersAreAdopted(t *testing.T) {
	e, dir := need(t), t.TempDir()
	d, _ := e.driver(t, dir, nil)
	in := begin(t, d, "blue-1")
	deploytest.Ask(t, in)
	stranger, _ := e.driver(t, t.TempDir(), nil)
	if _, err := stranger.Adopt(t.Context(), deploy.Spec{ID: "blue-1"}, in.Handle()); !errors.Is(err, deploy.ErrGone) {
		t.Errorf("another's container: %v", err)
	}
	h := in.Handle()
	for private, gone := range map[string]bool{
		`{"container":"` + strings.Repeat("0", 64) + `","port":1}`: true,
		`{"container":"x","port":1}`:                               false,
		`{"pid":1}`:                                                false,
		``:                                                         false,
	} {
		h.Private = json.RawMessage(private)
		if _, err := d.Adopt(t.Context(), deploy.Spec{ID: "blue-1"}, h); err == nil || errors.Is(err, deploy.ErrGone) != gone {
			t.Errorf("%s: %v", private, err)
		}
	}
	if got := deploytest.Ask(t, in); got == "" {
		t.Error("the copy was disturbed")
	}
}

func TestWhatAKilledLifeLeftBehindIsRemoved(t *testing.T) {
	e, dir := need(t), t.TempDir()
	first, _ := e.driver(t, dir, nil)
	wanted, unwanted, again := begin(t, first, "blue-1"), begin(t, first, "green-2"), begin(t, first, "blue-3")
	stranger, _ := e.driver(t, t.TempDir(), nil)
	others := begin(t, stranger, "blue-1")
	ids := func(d *Driver) []string { return e.containers(t, d) }

	second, j := e.driver(t, dir, nil)
	adopted, err := second.Adopt(t.Context(), deploy.Spec{ID: "blue-1"}, wanted.Handle())
	if err != nil {
		t.Fatal(err)
	}
	same := begin(t, second, "blue-3") // a name that the first life could not write down
	deploytest.AwaitExit(t, again)
	if err := second.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	deploytest.AwaitExit(t, unwanted)
	for _, in := range []deploy.Instance{adopted, same, others} {
		if deploytest.Ask(t, in) == "" {
			t.Error("one too many was removed")
		}
	}
	if len(ids(second)) != 2 || len(ids(stranger)) != 1 {
		t.Errorf("left: %v, %v", ids(second), ids(stranger))
	}
	if err := adopted.Stop(t.Context(), 0); err != nil {
		t.Error(err)
	}
	if !strings.Contains(j.String(), "removing a container that an earlier mainstay left behind") {
		t.Error("nobody was told")
	}
}

func TestAContainerThatIsNotOursIsLeftAlone(t *testing.T) {
	e := need(t)
	d, _ := e.driver(t, t.TempDir(), nil)
	o := d.options(d.policy.Load(), deploy.Spec{ID: "blue-1"}, testImage, 1)
	o.Config.Labels = nil
	made, err := e.cli.ContainerCreate(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer e.cli.ContainerRemove(context.Background(), made.ID, client.ContainerRemoveOptions{})
	if _, err := d.Start(t.Context(), deploy.Spec{ID: "blue-1"}); err == nil || !strings.Contains(err.Error(), "is not Mainstay's; rename or remove it") {
		t.Errorf("got %v", err)
	}
	if _, err := e.cli.ContainerInspect(t.Context(), made.ID, client.ContainerInspectOptions{}); err != nil {
		t.Error(err)
	}
}

func TestWhatCannotBeStartedIsNamedWithTheMend(t *testing.T) {
	e := need(t)
	if err := e.buildImage("mainstay.test/empty:1", map[string][]byte{"Dockerfile": []byte("FROM scratch\nCOPY plain /plain\n"), "plain": []byte("\x01\x02")}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		change func(*Options)
		spec   deploy.Spec
		want   string
	}{
		{nil, deploy.Spec{Command: deploy.Command{"nmp", "start"}}, `start blue-1 (` + testImage + `): there is no program "nmp" in the image; mend app.run`},
		{nil, deploy.Spec{Command: deploy.Command{"/no/such"}}, `there is no program "/no/such" in the image`},
		{nil, deploy.Spec{Image: "mainstay.test/empty:1"}, "the image does not say what to run; give app.run a command"},
		{nil, deploy.Spec{Image: "No Image"}, `"No Image" is not the name of an image`},
		{func(o *Options) { o.Config.Network = "nonesuch" }, deploy.Spec{}, `there is no Docker network "nonesuch"; try docker network create nonesuch`},
		{func(o *Options) { o.Config.Mounts = []containers.Mount{{Source: "/no/such", Target: "/data"}} }, deploy.Spec{}, "a folder of app.docker.mounts does not exist"},
		{func(o *Options) { o.Config.User = "nobody-here" }, deploy.Spec{}, `the image knows no user "nobody-here"`},
		{func(o *Options) { o.Config.Engine = "unix:///no/such.sock" }, deploy.Spec{}, "no Docker Engine answers at unix:///no/such.sock; start it"},
		{func(o *Options) { o.Config.Pull = containers.PullNever }, deploy.Spec{Image: "mainstay.test/none:1"}, "is not on this machine, and app.docker.pull is never"},
		{nil, deploy.Spec{Image: "sha256:" + strings.Repeat("0", 64)}, "is no longer on this machine; deploy it by its name"},
	} {
		d, _ := e.driver(t, t.TempDir(), c.change)
		c.spec.ID = "blue-1"
		_, err := d.Start(t.Context(), c.spec)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v\nwant %s", err, c.want)
		}
		if d.ports.Taken() != 0 || len(d.held) != 0 {
			t.Errorf("%s: %d ports and %v are still held", c.want, d.ports.Taken(), d.held)
		}
	}
}

func TestAPortThatWasTakenMeanwhileIsGivenUpForAnother(t *testing.T) {
	d, _ := need(t).driver(t, t.TempDir(), nil)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, s := d.policy.Load(), deploy.Spec{ID: "blue-1"}
	_, err = d.run(t.Context(), d.options(c, s, testImage, ln.Addr().(*net.TCPAddr).Port))
	if err = mend(err, s, c); !errors.Is(err, errPortTaken) {
		t.Errorf("got %v", err)
	}
}

func TestAStartThatIsCalledOffLeavesNothing(t *testing.T) {
	d, _ := need(t).driver(t, t.TempDir(), nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Start(ctx, deploy.Spec{ID: "blue-1"}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	c := d.policy.Load()
	if _, err := d.run(ctx, d.options(c, deploy.Spec{ID: "blue-1"}, testImage, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestNoFileIsLeftOpen(t *testing.T) {
	d, _ := need(t).driver(t, t.TempDir(), nil)
	count := func() int {
		d.engine.Close() // its idle connections
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(fds)
	}
	run := func() { deploytest.AwaitExit(t, begin(t, d, "blue-1", "exit", "0")) }
	run() // whatever is opened once
	before := count()
	for range 3 {
		run()
	}
	deploytest.Await(t, fmt.Sprintf("no more than %d files are open", before), func() bool { return count() <= before })
	if d.ports.Taken() != 0 || len(d.held) != 0 {
		t.Errorf("%d ports and %v are still held", d.ports.Taken(), d.held)
	}
}

func TestACopyThatRunsIsNotTakenForALeftover(t *testing.T) {
	d, _ := need(t).driver(t, t.TempDir(), nil)
	in := begin(t, d, "blue-1")
	before := deploytest.Ask(t, in)
	if _, err := d.Start(t.Context(), deploy.Spec{ID: "blue-1"}); err == nil || !strings.Contains(err.Error(), "a copy named blue-1 runs already") {
		t.Errorf("got %v", err)
	}
	if after := deploytest.Ask(t, in); after != before {
		t.Errorf("%q before, %q after", before, after)
	}
}
