-- 20 workspaces, 5 users in each, 200 contacts in each, 3 activities per contact.
-- No random(): every seeded database is the same.
INSERT INTO workspaces (id, name, plan)
SELECT w, 'Workspace ' || w, (ARRAY['free', 'pro', 'enterprise'])[1 + w % 3]
FROM generate_series(1, 20) AS w;

INSERT INTO users (workspace_id, email, name)
SELECT w, 'user' || u || '@workspace' || w || '.example', 'User ' || u || ' of ' || w
FROM generate_series(1, 20) AS w, generate_series(1, 5) AS u;

INSERT INTO contacts (workspace_id, owner_id, name, email, company, stage, value_cents, notes)
SELECT 1 + (c - 1) % 20,
       1 + ((c - 1) % 20) * 5 + c % 5,
       (ARRAY['Ada', 'Grace', 'Alan', 'Edsger', 'Barbara', 'Ken', 'Radia', 'Donald'])[1 + c % 8] || ' ' ||
       (ARRAY['Smith', 'Jones', 'Nguyen', 'Garcia', 'Patel', 'Kim', 'Okafor'])[1 + c % 7],
       'contact' || c || '@company' || c % 97 || '.example',
       'Company ' || c % 97,
       (ARRAY['lead', 'lead', 'talking', 'talking', 'proposal', 'won', 'lost'])[1 + c % 7],
       (c * 7919) % 5000000,
       'Met at the spring fair. Asked for a quote for ' || 1 + c % 40 || ' seats and for an answer by Friday. '
           || repeat('Wants to know more about exports, roles and invoices. ', 1 + c % 4)
FROM generate_series(1, 4000) AS c;

INSERT INTO activities (workspace_id, contact_id, kind, happened_at)
SELECT 1 + (c - 1) % 20, c, (ARRAY['email', 'call', 'meeting'])[k], now() - make_interval(days => (c * k) % 60)
FROM generate_series(1, 4000) AS c, generate_series(1, 3) AS k;

SELECT setval(pg_get_serial_sequence('workspaces', 'id'), (SELECT max(id) FROM workspaces));

ANALYZE;
