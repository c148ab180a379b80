// Drives node-postgres (pg) and postgres.js through the pooler, as applications use
// them, and prints one line of JSON: the names of the checks that held. The
// database's address is in DATABASE_URL. Any failure ends with exit code 1.
import assert from 'node:assert/strict'
import { pipeline } from 'node:stream/promises'
import { Readable, Writable } from 'node:stream'
import pg from 'pg'
import copy from 'pg-copy-streams'
import postgres from 'postgres'

const url = process.env.DATABASE_URL
const held = []
const check = async (name, run) => {
  await run()
  held.push(name)
}
const until = async (holds) => {
  for (const end = Date.now() + 20_000; !holds(); await new Promise((done) => setTimeout(done, 2))) assert.ok(Date.now() < end, 'in vain')
}
const range = (n) => Array.from({ length: n }, (_, i) => i)

async function nodePostgres() {
  const pool = new pg.Pool({ connectionString: url, max: 8, application_name: 'pg-node' })
  await check('pg: many queries at once', async () => {
    const rows = await Promise.all(range(100).map((i) => pool.query('select $1::int + 1 as n', [i])))
    rows.forEach((r, i) => assert.equal(r.rows[0].n, i + 1))
  })
  await check('pg: named prepared statements', async () => {
    const ask = (i) => pool.query({ name: `named-${i % 3}`, text: `select $1::text || '-${i % 3}' as s`, values: [String(i)] })
    const rows = await Promise.all(range(60).map(ask))
    rows.forEach((r, i) => assert.equal(r.rows[0].s, `${i}-${i % 3}`))
  })
  await check('pg: a transaction stays on one backend', async () => {
    const client = await pool.connect()
    try {
      await client.query('begin')
      const first = await client.query('select pg_backend_pid() as pid')
      const second = await client.query('select pg_backend_pid() as pid')
      assert.equal(first.rows[0].pid, second.rows[0].pid)
      await client.query('rollback')
    } finally {
      client.release()
    }
  })
  await check('pg: an error has its SQLSTATE and does not end the client', async () => {
    const client = await pool.connect()
    try {
      await assert.rejects(client.query('select 1/0'), { code: '22012' })
      await assert.rejects(client.query('select $1::int', ['no number']), { code: '22P02' })
      assert.equal((await client.query('select 1 as n')).rows[0].n, 1)
    } finally {
      client.release()
    }
  })
  await check('pg: COPY both ways', async () => {
    const client = await pool.connect()
    try {
      await client.query('begin; create temp table node_copy (n int, s text) on commit drop')
      const lines = range(20000).map((i) => `${i}\t${'x'.repeat(i % 100)}\n`)
      await pipeline(Readable.from(lines), client.query(copy.from('copy node_copy from stdin')))
      assert.equal((await client.query('select count(*)::int as n from node_copy')).rows[0].n, 20000)
      let bytes = 0
      const count = new Writable({ write(chunk, _, done) { bytes += chunk.length; done() } })
      await pipeline(client.query(copy.to('copy node_copy to stdout')), count)
      assert.equal(bytes, lines.join('').length)
      await client.query('commit')
    } finally {
      client.release()
    }
  })
  await check('pg: a large value', async () => {
    const big = 'b'.repeat(3_000_000)
    assert.equal((await pool.query('select $1::text as s', [big])).rows[0].s, big)
  })
  await check('pg: LISTEN, beside other queries, and its own notifications', async () => {
    const client = await pool.connect()
    try {
      const heard = []
      client.on('notification', (n) => heard.push(`${n.channel} ${n.payload} ${n.processId === client.processID}`))
      await client.query('listen node')
      for (const i of range(5)) {
        await pool.query("select pg_notify('node', $1)", [String(i)])
        await client.query('select 1')
      }
      await client.query("notify node, 'own'")
      await until(() => heard.length === 6)
      assert.deepEqual(heard, [...range(5).map((i) => `node ${i} false`), 'node own true'])
      await client.query('unlisten *')
    } finally {
      client.release()
    }
  })
  await pool.end()
}

async function postgresJS() {
  const sql = postgres(url, { max: 8, onnotice: () => {} })
  await check('postgres: many queries at once, prepared and pipelined', async () => {
    const rows = await Promise.all(range(200).map((i) => sql`select ${i}::int + 1 as n`))
    rows.forEach(([r], i) => assert.equal(r.n, i + 1))
  })
  await check('postgres: transactions with savepoints', async () => {
    await Promise.all(range(10).map((i) => sql.begin(async (tx) => {
      await tx`create temp table pjs (n int) on commit drop`
      await tx`insert into pjs ${tx([{ n: i }, { n: i }])}`
      await tx.savepoint((sp) => sp`insert into pjs values (1/0)`).catch((e) => assert.equal(e.code, '22012'))
      const [row] = await tx`select count(*)::int as n from pjs where n = ${i}`
      assert.equal(row.n, 2)
    })))
  })
  await check('postgres: a cursor', async () => {
    let seen = 0
    for await (const rows of sql`select generate_series(1, 1000) as n`.cursor(100)) seen += rows.length
    assert.equal(seen, 1000)
  })
  await check('postgres: a cancel ends the query', async () => {
    const query = sql`select pg_sleep(60)`.execute()
    setTimeout(() => query.cancel(), 100)
    await assert.rejects(query, { code: '57014' })
  })
  await check('postgres: COPY in', async () => {
    await sql.begin(async (tx) => {
      await tx`create temp table pjs_copy (n int) on commit drop`
      const sink = await tx`copy pjs_copy from stdin`.writable()
      await pipeline(Readable.from(range(5000).map((i) => `${i}\n`)), sink)
      const [row] = await tx`select count(*)::int as n from pjs_copy`
      assert.equal(row.n, 5000)
    })
  })
  await check('postgres: simple queries of several statements', async () => {
    const results = await sql.unsafe('select 1 as a; select 2 as b')
    assert.equal(results[0][0].a + results[1][0].b, 3)
  })
  await check('postgres: listen and notify', async () => {
    const heard = []
    const { unlisten } = await sql.listen('pjs', (payload) => heard.push(payload))
    await Promise.all(range(20).map((i) => sql.notify('pjs', String(i))))
    await until(() => heard.length === 20)
    assert.deepEqual(heard.map(Number).sort((a, b) => a - b), range(20))
    await unlisten()
  })
  await sql.end()
}

try {
  await nodePostgres()
  await postgresJS()
  console.log(JSON.stringify(held))
} catch (error) {
  console.error(error)
  process.exitCode = 1
}
setTimeout(() => process.exit(), 5000).unref()
