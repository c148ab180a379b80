package otlp

// schema is the version of the semantic conventions that the names follow.
const schema = "https://opentelemetry.io/schemas/1.41.0"

// scope is the instrumentation scope's name.
const scope = "mainstay.dev/mainstay"

// Attributes of the semantic conventions.
var (
	keyService        = newKey("service.name")
	keyServiceVersion = newKey("service.version")
	keyInstance       = newKey("service.instance.id")
	keyEnvironment    = newKey("deployment.environment.name")
	keySDKName        = newKey("telemetry.sdk.name")
	keySDKLanguage    = newKey("telemetry.sdk.language")

	keyUser          = newKey("enduser.id")
	keyErrorType     = newKey("error.type")
	keyServerAddress = newKey("server.address")
	keyServerPort    = newKey("server.port")
	keyClientAddress = newKey("client.address")

	keyMethod         = newKey("http.request.method")
	keyMethodOriginal = newKey("http.request.method_original")
	keyRequestSize    = newKey("http.request.body.size")
	keyResponseSize   = newKey("http.response.body.size")
	keyResend         = newKey("http.request.resend_count")
	keyStatus         = newKey("http.response.status_code")
	keyHTTPRoute      = newKey("http.route")
	keyProtocol       = newKey("network.protocol.version")
	keyPath           = newKey("url.path")
	keyScheme         = newKey("url.scheme")

	keySystem    = newKey("db.system.name")
	keyNamespace = newKey("db.namespace")
	keyOperation = newKey("db.operation.name")
	keyBatchSize = newKey("db.operation.batch.size")
	keyQuery     = newKey("db.query.text")
	keySQLState  = newKey("db.response.status_code")
	keyRows      = newKey("db.response.returned_rows")

	keyProvider    = newKey("gen_ai.provider.name")
	keyGenAI       = newKey("gen_ai.operation.name")
	keyModel       = newKey("gen_ai.request.model")
	keyMaxTokens   = newKey("gen_ai.request.max_tokens")
	keyTemperature = newKey("gen_ai.request.temperature")
	keyTopP        = newKey("gen_ai.request.top_p")
	keyTopK        = newKey("gen_ai.request.top_k")
	keyStream      = newKey("gen_ai.request.stream")
	keyAnswer      = newKey("gen_ai.response.id")
	keyAnswering   = newKey("gen_ai.response.model")
	keyFinish      = newKey("gen_ai.response.finish_reasons")
	keyFirstChunk  = newKey("gen_ai.response.time_to_first_chunk")
	keyInput       = newKey("gen_ai.usage.input_tokens")
	keyOutput      = newKey("gen_ai.usage.output_tokens")
	keyCacheRead   = newKey("gen_ai.usage.cache_read.input_tokens")
	keyCacheWrite  = newKey("gen_ai.usage.cache_creation.input_tokens")
)

// Attributes of ours, for what no semantic convention names. Times are in
// seconds.
var (
	keyPlane      = newKey("mainstay.plane")
	keyID         = newKey("mainstay.id")
	keyRoute      = newKey("mainstay.route")
	keyColor      = newKey("mainstay.color")
	keyCode       = newKey("mainstay.code")
	keyBlame      = newKey("mainstay.blame")
	keyCaller     = newKey("mainstay.caller")
	keyWorkspace  = newKey("mainstay.workspace")
	keyTier       = newKey("mainstay.tier")
	keyWait       = newKey("mainstay.wait")
	keyFirstByte  = newKey("mainstay.first_byte")
	keyAttempts   = newKey("mainstay.attempts")
	keyUpstreamID = newKey("mainstay.upstream_id")
	keyVia        = newKey("mainstay.claude.route")
	keyDegraded   = newKey("mainstay.claude.degraded")
	keyReplayOf   = newKey("mainstay.claude.replay_of")
	keyCost       = newKey("mainstay.cost.usd")
	keyTarget     = newKey("mainstay.target")
	keyCache      = newKey("mainstay.cache")
	keySaved      = newKey("mainstay.saved_by")

	keyFingerprint = newKey("mainstay.db.fingerprint")
	keyServerTime  = newKey("mainstay.db.server_time") // PostgreSQL's part, with the network
	keyClientTime  = newKey("mainstay.db.client_time") // for which the client let us wait
)
