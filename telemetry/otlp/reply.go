package otlp

import (
	"encoding/json"
	"mime"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

const (
	typeProtobuf = "application/x-protobuf"
	typeJSON     = "application/json"
)

// partial reads an ExportTraceServiceResponse: how many spans the collector refused of a
// request that it took, and why. A warning has a text and refuses none.
func partial(kind string, said []byte) (rejected int64, why string) {
	switch mediaType(kind) {
	case typeProtobuf:
		inner, _ := field(said, 1) // partial_success
		_, n := field(inner, 1)
		text, _ := field(inner, 2)
		rejected, why = int64(n), string(text)
	case typeJSON:
		var reply struct {
			PartialSuccess struct {
				RejectedSpans json.Number `json:"rejectedSpans"` // 64-bit numbers are strings in OTLP's JSON; some send numbers
				ErrorMessage  string      `json:"errorMessage"`
			} `json:"partialSuccess"`
		}
		if json.Unmarshal(said, &reply) != nil {
			return 0, ""
		}
		rejected, _ = strconv.ParseInt(reply.PartialSuccess.RejectedSpans.String(), 10, 64) // 0 if it is none
		why = reply.PartialSuccess.ErrorMessage
	}
	return max(0, rejected), clean(why)
}

// reason is what the collector says to a refusal, to stand behind its status: the message
// of a google.rpc.Status, or a text.
func reason(kind string, said []byte) string {
	text := string(said)
	switch mediaType(kind) {
	case typeProtobuf:
		message, _ := field(said, 2)
		text = string(message)
	case typeJSON:
		var status struct {
			Message string `json:"message"`
		}
		if json.Unmarshal(said, &status) == nil && status.Message != "" {
			text = status.Message
		}
	}
	if text = strings.TrimSpace(clean(text)); text == "" {
		return ""
	}
	return ": " + text
}

func mediaType(kind string) string {
	media, _, _ := mime.ParseMediaType(kind) // "" if it is none
	return media
}

// field finds the last field of a message that has that number: its bytes, or its number
// if it is one. What cannot be read ends the search.
func field(message []byte, want protowire.Number) (text []byte, number uint64) {
	for len(message) > 0 {
		num, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			break
		}
		message = message[n:]
		switch {
		case num == want && kind == protowire.BytesType:
			text, n = protowire.ConsumeBytes(message)
		case num == want && kind == protowire.VarintType:
			number, n = protowire.ConsumeVarint(message)
		default:
			n = protowire.ConsumeFieldValue(num, kind, message)
		}
		if n < 0 {
			break
		}
		message = message[n:]
	}
	return text, number
}
